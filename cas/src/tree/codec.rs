//! Bytes of our own formats: little-endian numbers, varints with one spelling, and lengths that are believed only as
//! far as there are bytes behind them.

/// Bytes that are not what the format says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: {reason}")]
pub struct Malformed {
    /// How far the decoder came.
    pub at: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

/// Reads a format from the front of a slice. Never reads past it and never allocates for a length alone.
#[derive(Debug, Clone)]
pub(crate) struct Take<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Take<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How many bytes were read.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn fail<T>(&self, reason: &'static str) -> Result<T, Malformed> {
        Err(Malformed { at: self.at, reason })
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        if len > self.remaining() {
            return self.fail("it ends too early");
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        Ok(self.bytes(N)?.try_into().expect("as many bytes as asked for"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A LEB128 number in its shortest form.
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..).step_by(7) {
            let byte = self.u8()?;
            if shift == 63 && byte > 1 {
                return self.fail("a number is longer than 64 bits");
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return self.fail("a number is not in its shortest form");
                }
                return Ok(value);
            }
        }
        unreachable!("the tenth byte ends the loop")
    }

    pub(crate) fn varint_u32(&mut self) -> Result<u32, Malformed> {
        let value = self.varint()?;
        u32::try_from(value).or_else(|_| self.fail("a number is longer than 32 bits"))
    }

    /// A signed number, zigzag.
    pub(crate) fn signed(&mut self) -> Result<i64, Malformed> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// A count of things that take at least `least` bytes each.
    pub(crate) fn count(&mut self, least: usize) -> Result<usize, Malformed> {
        let count = self.varint()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.remaining() / least.max(1) => Ok(count),
            _ => self.fail("a count is larger than the bytes that are left"),
        }
    }

    /// Bytes with their length before them, `range` long.
    pub(crate) fn sized(&mut self, least: usize, most: usize) -> Result<&'a [u8], Malformed> {
        let len = self.varint()?;
        match usize::try_from(len) {
            Ok(len) if (least..=most).contains(&len) => self.bytes(len),
            _ => self.fail("a length is outside what is allowed"),
        }
    }

    /// Nothing may be left.
    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.remaining() == 0 { Ok(()) } else { self.fail("bytes follow the end") }
    }
}

/// Appends numbers as [`Take`] reads them.
pub(crate) trait Put {
    fn put_varint(&mut self, value: u64);
    fn put_signed(&mut self, value: i64);
    fn put_sized(&mut self, bytes: &[u8]);
    fn put_len(&mut self, len: usize);
}

impl Put for Vec<u8> {
    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(u8::try_from(value & 0x7f).expect("seven bits fit a byte") | 0x80);
            value >>= 7;
        }
        self.push(u8::try_from(value).expect("seven bits fit a byte"));
    }

    fn put_signed(&mut self, value: i64) {
        self.put_varint((value << 1 ^ value >> 63).cast_unsigned());
    }

    fn put_sized(&mut self, bytes: &[u8]) {
        self.put_len(bytes.len());
        self.extend_from_slice(bytes);
    }

    fn put_len(&mut self, len: usize) {
        self.put_varint(u64::try_from(len).expect("a length in memory fits 64 bits"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(value: u64, signed: i64) {
            let mut bytes = Vec::new();
            bytes.put_varint(value);
            bytes.put_signed(signed);
            let mut take = Take::new(&bytes);
            prop_assert_eq!(take.varint().unwrap(), value);
            prop_assert_eq!(take.signed().unwrap(), signed);
            take.end().unwrap();
        }

        #[test]
        fn a_number_has_one_spelling(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut take = Take::new(&bytes);
            if let Ok(value) = take.varint() {
                let mut again = Vec::new();
                again.put_varint(value);
                prop_assert_eq!(&again[..], &bytes[..take.at()]);
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_are_numbers() {
        for value in [i64::MIN, -1, 0, 1, i64::MAX] {
            let mut bytes = Vec::new();
            bytes.put_signed(value);
            assert_eq!(Take::new(&bytes).signed().unwrap(), value);
        }
        assert!(Take::new(&[0x80, 0x00]).varint().is_err());
        assert!(Take::new(&[0xff; 10]).varint().is_err());
    }
}
