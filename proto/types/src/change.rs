//! Whether a call changed anything: every call can be made twice, and the second one says `Already`.

/// Says whether an operation did something or found its work done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<T = ()> {
    /// The operation made the change.
    Made(T),
    /// The same change had been made before; nothing moved.
    Already(T),
}

impl<T> Change<T> {
    /// Returns what the operation answers, whether or not this call made it.
    pub fn into_inner(self) -> T {
        match self {
            Self::Made(value) | Self::Already(value) => value,
        }
    }

    /// Tells if this call made the change.
    pub fn is_made(&self) -> bool {
        matches!(self, Self::Made(_))
    }
}
