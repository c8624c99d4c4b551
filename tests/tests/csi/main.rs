//! CSI over the real daemons and two nodes with pools and mounts of their own, called as kubelet and the sidecars call it.
//!
//! Which test shows which demand and which defect of the predecessor is in `tests/README.md`.

mod busy;
mod capacity;
mod groups;
mod health;
mod hostile;
mod left;
mod logs;
mod mobility;
mod online;
mod restarts;
mod snapshots;
mod sources;
mod takeover;
