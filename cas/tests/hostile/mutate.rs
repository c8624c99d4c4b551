//! Changes of bytes that are mostly JSON.

use rand::RngExt as _;
use rand::rngs::StdRng;

/// Text that a mutation puts where something else stood.
const PLANTS: &[&str] = &[
    "null",
    "true",
    "-1",
    "1e999",
    "18446744073709551616",
    "1152921504606846976",
    "0.5",
    "\"\"",
    "\"..\"",
    "\"../../etc/passwd\"",
    "\"a/b\"",
    "\"\\u0000\"",
    "[]",
    "{}",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
    "{\"format\":1}",
    "\"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff\"",
];

pub(crate) fn mutate(good: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..bytes.len().max(1));
        match random.random_range(0..8) {
            0 if !bytes.is_empty() => bytes[at] = random.random(),
            1 => bytes.truncate(at),
            2 => bytes.insert(at, random.random()),
            3 if !bytes.is_empty() => drop(bytes.remove(at)),
            4 => {
                // A number, a text or a word of JSON becomes something else.
                let ends = |byte: &u8| b",:{}[]".contains(byte);
                let from = bytes[..at].iter().rposition(ends).map_or(0, |found| found + 1);
                let to = bytes[at..].iter().position(ends).map_or(bytes.len(), |found| at + found);
                let plant = PLANTS[random.random_range(0..PLANTS.len())];
                bytes.splice(from..to, plant.bytes());
            }
            5 => {
                // A part twice: duplicate fields, entries, lists.
                let to = (at + random.random_range(1..200)).min(bytes.len());
                let part = bytes[at..to].to_vec();
                bytes.splice(at..at, part);
            }
            6 => {
                let text = String::from_utf8_lossy(&bytes).replacen("\"format\":1", "\"format\":2", 1);
                bytes = text.into_bytes();
            }
            _ => bytes.extend_from_slice(PLANTS[random.random_range(0..PLANTS.len())].as_bytes()),
        }
    }
    bytes
}
