//! Why each object of a store is kept or goes. Reads everything and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use types::{PackId, PoolId};

use super::collector::{Collector, Look};
use super::judge::{self, Life};
use super::object::{Gc, Phase};
use super::roots::pack_of;
use crate::error::Error;
use crate::keys;
use crate::objects::{Meta, list_all};
use crate::record::{self, State};
use crate::session::{self, SessionRecord, SessionState};
use crate::store::Stored;

/// What a collection would do with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It stays.
    Keep,
    /// Its live part is copied, then it goes.
    Rewrite,
    /// It goes.
    Go,
    /// It is none of ours: nobody touches it.
    Foreign,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "keep",
            Self::Rewrite => "rewrite",
            Self::Go => "go",
            Self::Foreign => "foreign",
        })
    }
}

/// One object, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Its key.
    pub object: String,
    /// Its length.
    pub bytes: u64,
    /// What would be done.
    pub verdict: Verdict,
    /// Why.
    pub why: String,
}

/// What the explanations are made from.
struct Facts {
    look: Look,
    living: BTreeMap<PackId, Life>,
    sparse: BTreeMap<PackId, u64>,
    gc: Gc,
    sessions: BTreeMap<String, Stored<SessionRecord>>,
    pools: BTreeSet<PoolId>,
}

impl Collector {
    /// Explains every object of the store, by its key.
    ///
    /// # Errors
    /// As for [`Self::round`].
    pub async fn explain(&mut self) -> Result<Vec<Explained>, Error> {
        self.begin();
        let gc = self.store.read::<Gc>(&keys::gc()).await?.map_or_else(Gc::never, |stored| stored.value);
        let look = self.look().await?;
        let living = judge::living(self.roots.named(), &self.roots.moved);
        let sparse = self.find_sparse(&look, &living, usize::MAX).await?.into_iter().collect();
        let mut sessions = BTreeMap::new();
        let mut pools = BTreeSet::new();
        for session in session::list(&self.store).await? {
            pools.insert(session.value.id.pool);
            sessions.insert(keys::session(&session.value.id).as_str().to_owned(), session);
        }
        let facts = Facts { look, living, sparse, gc, sessions, pools };
        let mut explained = Vec::new();
        for meta in list_all(&**self.store.objects(), "").await? {
            let (verdict, why) = self.explain_one(&facts, &meta)?;
            let object = meta.key.as_str().to_owned();
            explained.push(Explained { object, bytes: meta.size, verdict, why });
        }
        Ok(explained)
    }

    fn explain_one(&self, facts: &Facts, meta: &Meta) -> Result<(Verdict, String), Error> {
        let keep = |why: &str| (Verdict::Keep, why.to_owned());
        let key = meta.key.as_str();
        Ok(match key.split_once('/').map_or(key, |(kind, _)| kind) {
            "store" => keep("the store's identity"),
            "gc" => keep("where the collection stands"),
            "name" => keep("names are never deleted, and a removed one points nowhere"),
            "page" if self.roots.pages().contains(&meta.key) => keep("a record has older entries in it"),
            "page" => (Verdict::Go, "no record names this page".to_owned()),
            "probe" => (Verdict::Go, "a probe left it; it goes when it is a day old".to_owned()),
            "session" => self.explain_session(facts, key),
            "vol" => self.explain_record(facts, meta)?,
            "pack" => explain_pack(facts, &pack_of(meta, keys::PACKS)?, meta.size),
            "moved" => explain_moved(facts, &pack_of(meta, keys::MOVED)?),
            _ => (Verdict::Foreign, "not an object of this program".to_owned()),
        })
    }

    fn explain_session(&self, facts: &Facts, key: &str) -> (Verdict, String) {
        let Some(stored) = facts.sessions.get(key) else {
            return (Verdict::Keep, "a session that began just now".to_owned());
        };
        let SessionRecord { id, node, state, pin, low, .. } = &stored.value;
        if *state == SessionState::Live {
            return (Verdict::Keep, format!("the session of {node}, live, pin {pin}, low {low}"));
        }
        match self.roots.records.iter().find(|(_, known)| known.owner == Some(*id)) {
            Some((volume, _)) => (Verdict::Keep, format!("fenced, and the owner of {volume}")),
            None => (Verdict::Go, format!("a session of {node} that is over; it goes with age")),
        }
    }

    fn explain_record(&self, facts: &Facts, meta: &Meta) -> Result<(Verdict, String), Error> {
        let id = record::id_of(&meta.key)?;
        let Some(known) = self.roots.records.get(&id) else {
            return Ok((Verdict::Keep, "a record that was made just now".to_owned()));
        };
        let entries: BTreeSet<_> = known.roots.iter().map(|root| root.entry).collect();
        Ok(match known.state {
            State::Live => (Verdict::Keep, format!("a {}, live, {} entries", known.kind, entries.len())),
            State::Creating => (Verdict::Keep, "it is being created".to_owned()),
            State::Deleted => {
                (Verdict::Keep, format!("deleted, with {} entries until its grace is over", entries.len()))
            }
            State::Purged => match known.holders.intersection(&facts.pools).next() {
                Some(pool) => (Verdict::Keep, format!("purged, but pool {pool} holds a copy")),
                None => (Verdict::Go, "purged, and nobody holds a copy".to_owned()),
            },
        })
    }
}

fn explain_pack(facts: &Facts, pack: &PackId, size: u64) -> (Verdict, String) {
    let phase = if facts.gc.doomed.contains(pack) {
        "doomed: "
    } else if facts.gc.condemned.contains(pack) {
        "condemned: "
    } else {
        ""
    };
    if facts.gc.phase == Phase::Doomed && facts.gc.doomed.contains(pack) {
        return (Verdict::Go, format!("{phase}nothing can name it any more"));
    }
    let low = facts.look.lows.get(&pack.session);
    match facts.living.get(pack) {
        Some(life) => {
            let why = match life {
                Life::Named(naming) => {
                    let (volume, entry) = (&naming.volume, naming.entry);
                    let others = match naming.entries - 1 {
                        0 => String::new(),
                        n => format!(" and {n} more"),
                    };
                    format!("{phase}named by entry {entry} of {volume}{others}")
                }
                Life::Holds(from) => format!("{phase}holds frames of {from}, which is named"),
            };
            match facts.sparse.get(pack) {
                Some(live) => (Verdict::Rewrite, format!("{why}; {live} of {size} bytes are alive")),
                None => (Verdict::Keep, why),
            }
        }
        None if judge::is_young(pack, &facts.look.lows) => {
            let low = low.copied().unwrap_or_default();
            let session = pack.session;
            (Verdict::Keep, format!("session {session} lives and may still use packs from {low} on"))
        }
        None if !facts.look.packs.contains_key(pack) => (Verdict::Keep, "it was written just now".to_owned()),
        None => (Verdict::Go, format!("{phase}nothing names it")),
    }
}

fn explain_moved(facts: &Facts, pack: &PackId) -> (Verdict, String) {
    match facts.living.get(pack) {
        Some(Life::Named(naming)) => {
            let why = format!("entry {} of {} names the pack that moved", naming.entry, naming.volume);
            (Verdict::Keep, why)
        }
        Some(Life::Holds(from)) => (Verdict::Keep, format!("a part of the way of {from}, which is named")),
        None => (Verdict::Go, "nothing names the pack that moved".to_owned()),
    }
}
