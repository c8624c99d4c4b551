//! The rules of PROTOCOL.md §2, each of which can be switched off.

macro_rules! rules {
    ($($(#[doc = $text:literal])+ $name:ident,)+) => {
        /// A rule of PROTOCOL.md §2.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Rule { $($(#[doc = $text])+ $name,)+ }

        impl Rule {
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)+];

            /// What it says.
            pub(crate) fn says(self) -> &'static str {
                match self { $(Self::$name => concat!($($text),+).trim_ascii(),)+ }
            }
        }
    };
}

rules! {
    /// U: after a timeout the same bytes are sent until the store says yes or no.
    SameBytes,
    /// U: after a 412 a read that shows my nonce means that it happened.
    OwnNonce,
    /// U: after a 412, where the guard still holds, the change is applied again.
    Reapply,
    /// U: the etag comes from a read in which the guard held.
    GuardedEtag,
    /// U: every write has a new rev and nonce, so that a state never comes back.
    FreshRev,
    /// G: the record is of the birth that the copy knows.
    Birth,
    /// G: the owner is this session.
    Owner,
    /// G: the head is base or among the local snapshots.
    Head,
    /// R: a record is created without references.
    CreateEmpty,
    /// R(a), Sync: packs are acknowledged before the record names them.
    PacksFirst,
    /// R(c): what is condemned gains no reference.
    Confirm,
    /// R(c): nor does what a condemned pack's frames were moved from.
    ConfirmMoved,
    /// Pin: a hint counts only after a read under the pin.
    HintRead,
    /// Pin: joining reads `gc` again after the session is there.
    JoinAgain,
    /// Pin: a session begins with an empty index.
    EmptyIndex,
    /// Pin: index entries are made when the upload is acknowledged.
    IndexOnAck,
    /// Pin: raising ends or rechecks every earlier operation.
    RaiseWaits,
    /// Pin: raising drops what is condemned from the index.
    RaiseDrops,
    /// Restart: what the process before may have sent is settled before the pin moves.
    SettleInherited,
    /// Restart: a release that the process before may have sent is settled before anybody writes.
    SettleRelease,
    /// Restart: a snapshot beside base goes only after the write that may make it the head is settled.
    SettleBeforeDrop,
    /// Sync: `snap/<version>` is committed before the record names it.
    SnapFirst,
    /// Sync: the increment is taken only between a base and a live that descend from each other.
    Ancestor,
    /// Sync: a caller joins only what has not taken its snapshot.
    JoinBeforeSnapshot,
    /// Sync: dirty means that any root of the volume moved.
    AllRoots,
    /// Sync: on Lost, the copy goes only after its orphan is acknowledged.
    OrphanFirst,
    /// Create: the session is confirmed to live by a read begun after the record was known.
    CreateConfirms,
    /// Create: answered after the record has its head.
    AnswerAfterHead,
    /// Restore-to: the record moves before the swap.
    RecordBeforeSwap,
    /// Restore-to: `snap/<v>` is committed before the record names it.
    RestoreSnapFirst,
    /// Restore-to: the old head stays as an entry that is never thinned.
    KeepOldHead,
    /// Restore-to: the old tree stays until its last mount is gone.
    KeepMounted,
    /// Release: it is a write of the record by its owner.
    ReleaseIsPublish,
    /// Release: gates are closed.
    GatesClosed,
    /// Release: what is released is clean.
    ReleaseClean,
    /// Acquire: only what nobody, this session or a fenced one owns.
    AcquireFree,
    /// Acquire: what is materialised is the head.
    AcquireHead,
    /// Acquire: the session is confirmed to live before the tree takes its place.
    AcquireConfirms,
    /// Orders of the hub are requests: the node reads the record before it destroys anything.
    OrdersAreRequests,
    /// Sessions: fenced is for ever.
    FencedForEver,
    /// Delete: a reachable owner publishes first.
    OwnerPublishesFirst,
    /// Delete: entries stay roots until the purge.
    EntriesStay,
    /// Delete: a copy without a record is quarantined.
    Quarantine,
    /// Delete: only a tombstone of the same birth permits dropping, and what it does not list is kept first.
    TombstoneKeeps,
    /// Delete: the object goes when no pool holds a copy.
    HoldersFirst,
    /// Thin: never a branch, a pinned entry or the head.
    ThinKept,
    /// Thin: at most two with one write.
    ThinBounded,
    /// GC: packs from `low` of a live session on are not judged.
    Low,
    /// GC: waits for the pin of every live session.
    WaitForPins,
    /// GC: fences who does not follow.
    FenceLaggards,
    /// GC: takes every record from a fenced session before it counts as drained.
    Drain,
    /// GC: marks again before anything is doomed.
    MarkAgain,
    /// GC: each step is a compare-and-swap of the state that it was decided on.
    CompareAndSwap,
    /// GC: goes to idle only when all that is doomed is gone.
    DoomedStays,
    /// GC: a read error ends the round.
    ErrorEndsRound,
    /// GC: what is copied from an evacuated pack is what the second mark found.
    CopyMarkedAgain,
    /// GC: `moved/` is put before its pack is deleted.
    MovedFirst,
    /// GC: where a named frame was moved to is a root.
    MovedIsRoot,
    /// Readers: a pack that is not there is looked up in `moved/`.
    FollowMoved,
}

/// Those that are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules(u64);

impl Rules {
    pub(crate) const ALL: Self = Self(u64::MAX);

    #[must_use]
    pub(crate) fn without(self, rule: Rule) -> Self {
        Self(self.0 & !(1 << rule as u64))
    }

    pub(crate) fn has(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u64) != 0
    }
}
