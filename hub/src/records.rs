//! Records as they were last read, in the state file: what a list shows, by id. Lists come from here, each after the
//! store's own listing has said which of them are still so.

use std::collections::HashMap;

use rusqlite::{Connection, named_params, params};
use types::{Birth, Rev, SessionId, VolumeId};

use crate::error::Error;
use crate::state::{State, parsed, parsed_or_null};

/// The table, made anew where the schema's number moved. It lies in the order of the ids, as lists read it.
pub(crate) const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS records (
        volume TEXT PRIMARY KEY, birth TEXT NOT NULL, rev INTEGER NOT NULL, etag TEXT NOT NULL, owner TEXT,
        name TEXT NOT NULL, kind INTEGER NOT NULL, origin TEXT NOT NULL, living INTEGER NOT NULL,
        listed BLOB NOT NULL) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS records_by_name ON records (name) WHERE name <> '';
    CREATE INDEX IF NOT EXISTS records_by_owner ON records (owner);
    CREATE INDEX IF NOT EXISTS records_by_kind ON records (kind, volume) WHERE living;
    CREATE INDEX IF NOT EXISTS records_by_origin ON records (origin, volume) WHERE living AND origin <> '';
    CREATE INDEX IF NOT EXISTS records_by_etag ON records (volume, etag);
";

/// A record as it was last read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptRecord {
    /// Whose.
    pub volume: VolumeId,
    /// Tells it from another one with the same id.
    pub birth: Birth,
    /// Counts its writes: an older reading does not replace a newer one.
    pub rev: Rev,
    /// The etag under which it was read.
    pub etag: String,
    /// The name people gave it, or empty.
    pub name: String,
    /// The session that owns it.
    pub owner: Option<SessionId>,
    /// Of which kind, by the wire's number.
    pub kind: i32,
    /// What it was made from, or empty.
    pub origin: String,
    /// Whether it lives: what does not is in no list.
    pub living: bool,
    /// What a list says of it, as an encoded `hub.v1.Volume`. Empty where it does not live.
    pub listed: Vec<u8>,
}

/// What a list shows of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRecord {
    /// Whose.
    pub volume: VolumeId,
    /// The session that owns it.
    pub owner: Option<SessionId>,
    /// An encoded `hub.v1.Volume`.
    pub listed: Vec<u8>,
}

/// Which living records are wanted.
#[derive(Debug, Clone, Default)]
pub struct Range {
    /// Those after this id; empty: from the first.
    pub after: String,
    /// Of this kind, by the wire's number; nothing: of any.
    pub kind: Option<i32>,
    /// Made from this; empty: from anything.
    pub origin: String,
    /// At most so many.
    pub limit: usize,
}

impl State {
    /// Keeps records as they were read. A newer reading of the same record stays.
    pub async fn put_records(&self, records: Vec<KeptRecord>) -> Result<(), Error> {
        self.run(move |db| put(db, records)).await
    }

    /// Keeps a record as it was read, and waits for nothing: what is asked of the state from now on finds it. Where it
    /// cannot be kept it is read again by the next list.
    pub async fn keep(&self, record: KeptRecord) -> Result<(), Error> {
        self.later(move |db| put(db, vec![record])).await
    }

    /// Returns the id and etag of every record that is kept.
    pub async fn etags(&self) -> Result<HashMap<String, String>, Error> {
        self.run(|db| {
            let mut query =
                db.prepare_cached("SELECT volume, etag FROM records INDEXED BY records_by_etag")?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
        .await
    }

    /// Returns living records in order of their ids.
    pub async fn range(&self, range: Range) -> Result<Vec<ListedRecord>, Error> {
        self.run(move |db| {
            // One statement for each set of filters, so that each walks an index in the order of the ids.
            let filter = match (range.kind, range.origin.is_empty()) {
                (None, true) => "",
                (Some(_), true) => "AND kind = :kind",
                (None, false) => "AND origin <> '' AND origin = :origin",
                (Some(_), false) => "AND origin <> '' AND origin = :origin AND +kind = :kind",
            };
            let mut query = db.prepare_cached(&format!(
                "SELECT volume, owner, listed FROM records
                 WHERE living AND volume > :after {filter} ORDER BY volume LIMIT :limit"
            ))?;
            let limit = i64::try_from(range.limit).unwrap_or(i64::MAX);
            for (name, value) in [(":after", &range.after), (":origin", &range.origin)] {
                if let Some(index) = query.parameter_index(name)? {
                    query.raw_bind_parameter(index, value)?;
                }
            }
            for (name, value) in [(":limit", Some(limit)), (":kind", range.kind.map(i64::from))] {
                if let Some(index) = query.parameter_index(name)? {
                    query.raw_bind_parameter(index, value)?;
                }
            }
            let rows = query.raw_query().mapped(|row| {
                Ok(ListedRecord {
                    volume: parsed(row, 0)?,
                    owner: parsed_or_null(row, 1)?,
                    listed: row.get(2)?,
                })
            });
            rows.collect()
        })
        .await
    }

    /// Returns the volumes that carry this name, in order of their ids.
    pub async fn named(&self, name: String) -> Result<Vec<VolumeId>, Error> {
        self.run(move |db| {
            let mut query = db
                .prepare_cached("SELECT volume FROM records WHERE name <> '' AND name = ? ORDER BY volume")?;
            let rows = query.query_map([name], |row| parsed(row, 0))?;
            rows.collect()
        })
        .await
    }

    /// Returns those of `sessions` that own something that is kept.
    pub async fn owners(&self, sessions: Vec<SessionId>) -> Result<Vec<SessionId>, Error> {
        self.run(move |db| {
            let mut query = db.prepare_cached("SELECT 1 FROM records WHERE owner = ? LIMIT 1")?;
            let mut owners = Vec::new();
            for session in sessions {
                if query.exists([session.to_string()])? {
                    owners.push(session);
                }
            }
            Ok(owners)
        })
        .await
    }

    /// Counts the living records of a kind.
    pub async fn count(&self, kind: i32) -> Result<u32, Error> {
        self.run(move |db| {
            let mut query = db.prepare_cached("SELECT count(*) FROM records WHERE living AND kind = ?")?;
            query.query_row([kind], |row| row.get(0))
        })
        .await
    }

    /// Forgets records that a complete listing did not have, unless they were read again since `etag`.
    pub async fn forget_gone(&self, gone: Vec<(String, String)>) -> Result<(), Error> {
        self.run(move |db| {
            let transaction = db.transaction()?;
            for (volume, etag) in gone {
                forget(&transaction, &volume, Some(&etag))?;
            }
            transaction.commit()
        })
        .await
    }

    /// Forgets a record that the store does not have, and waits for nothing.
    pub async fn forget(&self, volume: VolumeId) -> Result<(), Error> {
        self.later(move |db| forget(db, volume.as_str(), None)).await
    }
}

fn put(db: &mut Connection, records: Vec<KeptRecord>) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    {
        let mut put = transaction.prepare_cached(
            "INSERT INTO records (volume, birth, rev, etag, owner, name, kind, origin, living, listed)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (volume) DO UPDATE SET
                 birth = excluded.birth, rev = excluded.rev, etag = excluded.etag, owner = excluded.owner,
                 name = excluded.name, kind = excluded.kind, origin = excluded.origin,
                 living = excluded.living, listed = excluded.listed
             WHERE excluded.birth <> records.birth OR excluded.rev > records.rev",
        )?;
        for record in records {
            put.execute(params![
                record.volume.as_str(),
                record.birth.to_string(),
                i64::try_from(record.rev.0).unwrap_or(i64::MAX),
                record.etag,
                record.owner.map(|owner| owner.to_string()),
                record.name,
                record.kind,
                record.origin,
                record.living,
                record.listed,
            ])?;
        }
    }
    transaction.commit()
}

fn forget(db: &Connection, volume: &str, etag: Option<&str>) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM records WHERE volume = :volume AND (:etag IS NULL OR etag = :etag)")?
        .execute(named_params! { ":volume": volume, ":etag": etag })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use types::StoreId;

    use super::*;

    fn record(volume: &str, name: &str, rev: u64) -> KeptRecord {
        KeptRecord {
            volume: volume.parse().unwrap(),
            birth: "00000000000000000000000001".parse().unwrap(),
            rev: Rev(rev),
            etag: format!("\"{rev}\""),
            name: name.into(),
            owner: None,
            kind: 1,
            origin: String::new(),
            living: true,
            listed: vec![1, 2, 3],
        }
    }

    async fn ids(state: &State, range: Range) -> Vec<String> {
        let found = state.range(Range { limit: range.limit.max(10), ..range }).await.unwrap();
        found.into_iter().map(|record| record.volume.to_string()).collect()
    }

    #[tokio::test]
    async fn records_are_found_by_range_kind_origin_and_name() {
        let state = State::memory(StoreId::random()).unwrap();
        let snapshot = KeptRecord { kind: 2, origin: "a".into(), ..record("c", "", 1) };
        let gone = KeptRecord { living: false, listed: Vec::new(), ..record("d", "", 1) };
        state.put_records(vec![record("a", "shop", 1), record("b", "", 1), snapshot, gone]).await.unwrap();
        assert_eq!(ids(&state, Range::default()).await, ["a", "b", "c"]);
        assert_eq!(ids(&state, Range { after: "a".into(), ..Range::default() }).await, ["b", "c"]);
        assert_eq!(ids(&state, Range { kind: Some(1), ..Range::default() }).await, ["a", "b"]);
        for kind in [None, Some(2)] {
            assert_eq!(ids(&state, Range { origin: "a".into(), kind, ..Range::default() }).await, ["c"]);
        }
        assert!(
            ids(&state, Range { origin: "a".into(), kind: Some(1), ..Range::default() }).await.is_empty()
        );
        assert_eq!(state.range(Range { limit: 1, ..Range::default() }).await.unwrap().len(), 1);
        assert_eq!(state.named("shop".into()).await.unwrap(), vec!["a".parse().unwrap()]);
        assert_eq!(state.count(1).await.unwrap(), 2);
        state.forget("a".parse().unwrap()).await.unwrap();
        assert!(state.named("shop".into()).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_older_reading_does_not_replace_a_newer_one() {
        let state = State::memory(StoreId::random()).unwrap();
        state.put_records(vec![record("a", "new", 2)]).await.unwrap();
        state.put_records(vec![record("a", "old", 1)]).await.unwrap();
        assert_eq!(state.etags().await.unwrap()["a"], "\"2\"");
        let another =
            KeptRecord { birth: "00000000000000000000000002".parse().unwrap(), ..record("a", "", 1) };
        state.put_records(vec![another]).await.unwrap();
        assert_eq!(state.etags().await.unwrap()["a"], "\"1\"", "another record that got the id");
    }

    #[tokio::test]
    async fn what_was_read_during_a_listing_is_not_forgotten_by_it() {
        let state = State::memory(StoreId::random()).unwrap();
        state.put_records(vec![record("a", "", 1), record("b", "", 1)]).await.unwrap();
        let before = state.etags().await.unwrap();
        state.put_records(vec![record("a", "", 2)]).await.unwrap();
        state.forget_gone(before.into_iter().collect()).await.unwrap();
        assert_eq!(ids(&state, Range::default()).await, ["a"]);
    }

    /// A list that sorts, or looks at every record, is slow where there are many.
    #[test]
    fn lists_walk_an_index() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(TABLE).unwrap();
        for (filter, index) in [
            ("AND kind = 1", "records_by_kind (kind=? AND volume>?)"),
            ("AND origin <> '' AND origin = 'x' AND +kind = 1", "records_by_origin (origin=? AND volume>?)"),
        ] {
            let plan: String = db
                .prepare(&format!(
                    "EXPLAIN QUERY PLAN SELECT volume, owner, listed FROM records
                     WHERE living AND volume > 'a' {filter} ORDER BY volume LIMIT 5"
                ))
                .unwrap()
                .query_map([], |row| row.get::<_, String>(3))
                .unwrap()
                .collect::<rusqlite::Result<Vec<_>>>()
                .unwrap()
                .join("; ");
            assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{filter}: {plan}");
        }
    }
}
