//! Simple quotas: what a volume may hold, and holds.
//!
//! One group of level 1 per volume carries the limit; each subvolume of the volume is made as its member inside the
//! create call, so there is no moment without a limit, and a subvolume that a user makes in it joins by itself. Classic
//! qgroups are refused: they make each clone slower than the one before.
//!
//! A charge stays with the subvolume that wrote an extent until nothing refers to the extent any more, even when that
//! subvolume is gone. So a volume's group keeps the bytes its snapshots hold, and outlives its subvolumes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::AsFd as _;

use nix::errno::Errno;

use crate::abi::{
    QGROUP_LIMIT_MAX_RFER, QGROUP_LIMIT_NONE, QUOTA_CTL_ENABLE_SIMPLE_QUOTA, QgroupAssignArgs,
    QgroupCreateArgs, QgroupLimitArgs,
};
use crate::search::{Key, Search, kind, tree};
use crate::{Dir, Error, Result, sys};

/// Bits of a group's id that are its number; the level is above them (`BTRFS_QGROUP_LEVEL_SHIFT`).
const NUMBER_BITS: u32 = 48;

/// A quota group: a level and a number, shown as `1/7`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(u64);

impl GroupId {
    /// A volume's group: level 1. `None` if the number needs more than 48 bits.
    pub fn volume(number: u64) -> Option<Self> {
        (number >> NUMBER_BITS == 0).then_some(Self(1 << NUMBER_BITS | number))
    }

    /// The group the kernel made for a subvolume: level 0.
    pub fn subvolume(id: u64) -> Self {
        Self(id)
    }

    /// As the kernel has it.
    pub fn get(self) -> u64 {
        self.0
    }

    /// 0 for a subvolume's, 1 for a volume's.
    pub fn level(self) -> u64 {
        self.0 >> NUMBER_BITS
    }

    /// Without the level.
    pub fn number(self) -> u64 {
        self.0 & ((1 << NUMBER_BITS) - 1)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.level(), self.number())
    }
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether a filesystem counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It does not.
    Off,
    /// Simple quotas.
    Simple,
    /// Classic qgroups, which we do not use.
    Classic,
}

/// What a group is charged and may be, as of the last commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes charged.
    pub referenced_bytes: u64,
    /// Bytes only the group has; with simple quotas the same.
    pub exclusive_bytes: u64,
    /// Most that may be charged; none: unlimited.
    pub limit_bytes: Option<u64>,
}

/// A group with its place among the others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// What it is charged and may be.
    pub usage: Usage,
    /// Groups it is a member of.
    pub parents: Vec<GroupId>,
    /// Groups that are its members.
    pub members: Vec<GroupId>,
}

/// Turns simple quotas on. `false` if they were. Only what is written from now on is counted.
///
/// Sets an incompat bit: kernels before 6.7 then refuse the filesystem. So it is decided when a pool is made.
pub fn enable_simple(dir: &Dir) -> Result<bool> {
    match state(dir)? {
        State::Simple => Ok(false),
        State::Classic => Err(Error::ClassicQuota { name: dir.name().to_owned() }),
        State::Off => {
            sys::quota_ctl(dir.as_fd(), QUOTA_CTL_ENABLE_SIMPLE_QUOTA)
                .map_err(dir.on_self("BTRFS_IOC_QUOTA_CTL"))?;
            // Somebody else may have enabled the other kind in between, in which case the kernel says nothing.
            match state(dir)? {
                State::Simple => Ok(true),
                State::Classic => Err(Error::ClassicQuota { name: dir.name().to_owned() }),
                State::Off => Err(dir.on_self("BTRFS_IOC_QUOTA_CTL")(Errno::EOPNOTSUPP)),
            }
        }
    }
}

/// Whether the filesystem counts, and how.
pub fn state(dir: &Dir) -> Result<State> {
    let mut search = Search::new(dir, tree::QUOTA, Key::object_kind(0, kind::QGROUP_STATUS));
    let item = match search.next_item() {
        Ok(Some(item)) => item,
        Ok(None) => return Ok(State::Off),
        // No such tree: never enabled, or disabled.
        Err(error) if error.is(Errno::ENOENT) => return Ok(State::Off),
        Err(error) => return Err(error),
    };
    let flags = item.quota_status()?.flags;
    // BTRFS_QGROUP_STATUS_FLAG_ON, BTRFS_QGROUP_STATUS_FLAG_SIMPLE_MODE
    Ok(match (flags & 1 != 0, flags & 8 != 0) {
        (false, _) => State::Off,
        (true, true) => State::Simple,
        (true, false) => State::Classic,
    })
}

/// Makes a group without members or limit. `false` if there is one.
pub fn create_group(dir: &Dir, group: GroupId) -> Result<bool> {
    match sys::qgroup_create(dir.as_fd(), &QgroupCreateArgs { create: 1, qgroupid: group.0 }) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(on_group(dir, group, "BTRFS_IOC_QGROUP_CREATE")(errno)),
    }
}

/// Removes a group. `false` if there is none.
///
/// `EBUSY` while it has members: they go when their subvolumes are gone and so are the last references to what those
/// wrote.
pub fn remove_group(dir: &Dir, group: GroupId) -> Result<bool> {
    match sys::qgroup_create(dir.as_fd(), &QgroupCreateArgs { create: 0, qgroupid: group.0 }) {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(on_group(dir, group, "BTRFS_IOC_QGROUP_CREATE (remove)")(errno)),
    }
}

/// Removes those of `groups` that are charged nothing and have no member that lives, and returns the others. One that is
/// not there is removed.
///
/// The kernel keeps a deleted subvolume's membership where something was still charged to it when it went, also when
/// that is gone in the end; so the memberships go with the group.
pub fn remove_unused(dir: &Dir, groups: impl IntoIterator<Item = GroupId>) -> Result<Vec<GroupId>> {
    let all = self::groups(dir)?;
    let charged = |group: &GroupId| all.get(group).is_some_and(|found| found.usage.referenced_bytes > 0);
    let (mut left, free): (Vec<GroupId>, Vec<GroupId>) = groups.into_iter().partition(charged);
    if free.is_empty() {
        return Ok(left);
    }
    let roots: BTreeSet<u64> = crate::subvolume::roots(dir)?.iter().map(|root| root.id).collect();
    let lives = |member: &GroupId| member.level() > 0 || roots.contains(&member.number());
    for group in free {
        let members = all.get(&group).map(|found| found.members.as_slice()).unwrap_or_default();
        // What the kernel does not want to part with yet is asked for again.
        if members.iter().any(lives) || dissolve(dir, group, members).is_err() {
            left.push(group);
        }
    }
    Ok(left)
}

fn dissolve(dir: &Dir, group: GroupId, members: &[GroupId]) -> Result<()> {
    for member in members {
        unassign(dir, *member, group)?;
        remove_group(dir, *member)?;
    }
    remove_group(dir, group).map(drop)
}

/// Sets what a group may be charged; `None` is unlimited. `ENOENT` if there is no such group.
///
/// A limit below what is charged is accepted: then nothing more can be written.
pub fn limit(dir: &Dir, group: GroupId, limit_bytes: Option<u64>) -> Result<()> {
    let args = QgroupLimitArgs {
        qgroupid: group.0,
        flags: QGROUP_LIMIT_MAX_RFER,
        max_rfer: limit_bytes.unwrap_or(QGROUP_LIMIT_NONE),
        max_excl: 0,
        rsv_rfer: 0,
        rsv_excl: 0,
    };
    sys::qgroup_limit(dir.as_fd(), args).map_err(on_group(dir, group, "BTRFS_IOC_QGROUP_LIMIT"))
}

/// Makes `member` a member of `group`. `false` if it was. Prefer doing so when the subvolume is made.
pub fn assign(dir: &Dir, member: GroupId, group: GroupId) -> Result<bool> {
    match sys::qgroup_assign(dir.as_fd(), &QgroupAssignArgs { assign: 1, src: member.0, dst: group.0 }) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(on_group(dir, member, "BTRFS_IOC_QGROUP_ASSIGN")(errno)),
    }
}

/// Ends a membership. `false` if there was none.
pub fn unassign(dir: &Dir, member: GroupId, group: GroupId) -> Result<bool> {
    match sys::qgroup_assign(dir.as_fd(), &QgroupAssignArgs { assign: 0, src: member.0, dst: group.0 }) {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(on_group(dir, member, "BTRFS_IOC_QGROUP_ASSIGN (remove)")(errno)),
    }
}

/// What a group is charged and may be, as of the last commit. `None` if there is no such group.
pub fn usage(dir: &Dir, group: GroupId) -> Result<Option<Usage>> {
    let mut usage = None;
    for kind in [kind::QGROUP_INFO, kind::QGROUP_LIMIT] {
        let key = Key { objectid: 0, kind, offset: group.0 };
        let mut search = Search::new(dir, tree::QUOTA, key..=key);
        match search.next_item() {
            Ok(Some(item)) => add(usage.get_or_insert_default(), &item)?,
            Ok(None) => {}
            Err(error) if error.is(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(usage)
}

/// Groups that `member` is a member of.
pub fn parents(dir: &Dir, member: GroupId) -> Result<Vec<GroupId>> {
    let mut parents = Vec::new();
    let mut search = Search::new(dir, tree::QUOTA, Key::object_kind(member.0, kind::QGROUP_RELATION));
    loop {
        match search.next_item() {
            // A relation is there from both ends; a parent's level, and so its id, is the higher one.
            Ok(Some(item)) if item.key.offset > member.0 => parents.push(GroupId(item.key.offset)),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(parents),
            Err(error) if error.is(Errno::ENOENT) => return Ok(parents),
            Err(error) => return Err(error),
        }
    }
}

/// Every group, as of the last commit. Empty where quotas are off.
pub fn groups(dir: &Dir) -> Result<BTreeMap<GroupId, Group>> {
    let mut groups = BTreeMap::<GroupId, Group>::new();
    let mut search = Search::new(dir, tree::QUOTA, Key::FIRST..=Key::LAST);
    loop {
        let item = match search.next_item() {
            Ok(Some(item)) => item,
            Ok(None) => return Ok(groups),
            Err(error) if error.is(Errno::ENOENT) => return Ok(groups),
            Err(error) => return Err(error),
        };
        match item.key.kind {
            kind::QGROUP_INFO | kind::QGROUP_LIMIT => {
                add(&mut groups.entry(GroupId(item.key.offset)).or_default().usage, &item)?;
            }
            // Each relation is there twice, once from each end.
            kind::QGROUP_RELATION if item.key.objectid < item.key.offset => {
                let (member, parent) = (GroupId(item.key.objectid), GroupId(item.key.offset));
                groups.entry(member).or_default().parents.push(parent);
                groups.entry(parent).or_default().members.push(member);
            }
            _ => {}
        }
    }
}

fn add(usage: &mut Usage, item: &crate::search::Item<'_>) -> Result<()> {
    if item.key.kind == kind::QGROUP_INFO {
        let charged = item.group_usage()?;
        usage.referenced_bytes = charged.referenced_bytes;
        usage.exclusive_bytes = charged.exclusive_bytes;
    } else {
        usage.limit_bytes = item.group_limit()?.referenced_bytes;
    }
    Ok(())
}

fn on_group(dir: &Dir, group: GroupId, call: &'static str) -> impl FnOnce(Errno) -> Error {
    Error::call(call, format!("{} (group {group})", dir.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_a_level_and_a_number() {
        let group = GroupId::volume(7).unwrap();
        assert_eq!((group.level(), group.number(), group.to_string()), (1, 7, "1/7".to_owned()));
        assert_eq!(group.get(), 0x0001_0000_0000_0007);
        assert_eq!(GroupId::volume(1 << 48), None);
        assert_eq!(GroupId::subvolume(256).to_string(), "0/256");
    }
}
