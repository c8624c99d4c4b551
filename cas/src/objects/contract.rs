//! The contract of [`Objects`] as one suite, for every implementation and every decorator.
//!
//! It works under the prefix `contract/<random>/` and removes what it wrote. It panics at the first sentence that does
//! not hold, with the sentence. Retries what may be retried (`Conflict`, `Unavailable`), as a caller would.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use ulid::Ulid;

use super::{Condition, Etag, Key, ObjectError, Objects, list_all};

/// How often a write is sent again before the store is called broken.
const TRIES: u32 = 100;

/// Checks the whole contract. Panics where it is broken.
pub async fn check(objects: &dyn Objects) {
    let scratch =
        Scratch { objects, prefix: format!("contract/{}", Ulid::generate().to_string().to_lowercase()) };
    scratch.what_was_put_is_read().await;
    scratch.absent_objects_are_not_found().await;
    scratch.conditions_hold().await;
    scratch.etags_do_not_come_back().await;
    scratch.ranges_are_exact().await;
    scratch.listings_are_sorted_and_complete().await;
    scratch.one_of_many_creators_wins().await;
    scratch.one_of_many_updaters_wins().await;
    scratch.racing_increments_are_not_lost(8, 6).await;
    scratch.readers_see_whole_objects().await;
    scratch.an_updated_object_is_in_every_listing().await;
    scratch.clean_up().await;
}

/// Checks only that `writers` tasks, each of `increments` If-Match updates, lose none; for several processes at once on
/// one `key`, which the caller made with the text `0`. Returns the value that it saw last.
pub async fn increment(objects: &dyn Objects, key: &Key, writers: usize, increments: usize) -> u64 {
    let tasks = (0..writers).map(|_| async {
        let mut last = 0;
        for _ in 0..increments {
            last = increment_once(objects, key).await;
        }
        last
    });
    join_all(tasks).await.into_iter().max().unwrap_or(0)
}

async fn increment_once(objects: &dyn Objects, key: &Key) -> u64 {
    let mut lost = 0;
    loop {
        let object = retry(|| objects.get(key)).await.expect("the counter is there");
        let text = std::str::from_utf8(&object.bytes).expect("the counter is text");
        let (count, history) = text.split_once(' ').unwrap_or((text, ""));
        let next = count.parse::<u64>().expect("the counter is a number") + 1;
        // The history tells, after a lost answer, whether this write was made, also when others have followed it.
        let nonce = Ulid::generate();
        let bytes = Bytes::from(format!("{next} {history} {nonce}"));
        let condition = Condition::IfMatch(object.meta.etag);
        match retry(|| objects.put(key, bytes.clone(), &condition)).await {
            Ok(_) => return next,
            Err(ObjectError::Precondition { .. }) => {
                let now = retry(|| objects.get(key)).await.expect("the counter is there");
                if String::from_utf8_lossy(&now.bytes).contains(&nonce.to_string()) {
                    return next;
                }
                lost += 1;
                assert!(lost < 100_000, "an update is never let through");
            }
            Err(error) => panic!("an update failed: {error}"),
        }
    }
}

/// Calls again while the answer is that it may be.
async fn retry<T, F>(call: impl Fn() -> F) -> Result<T, ObjectError>
where
    F: Future<Output = Result<T, ObjectError>>,
{
    let mut tries = 0;
    loop {
        match call().await {
            Err(
                ObjectError::Conflict { .. } | ObjectError::Unavailable { .. } | ObjectError::Busy { .. },
            ) if tries < TRIES => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(u64::from(tries))).await;
            }
            answer => return answer,
        }
    }
}

struct Scratch<'a> {
    objects: &'a dyn Objects,
    prefix: String,
}

impl Scratch<'_> {
    fn key(&self, name: &str) -> Key {
        format!("{}/{name}", self.prefix).parse().expect("a test names valid keys")
    }

    async fn create(&self, name: &str, bytes: &[u8]) -> Etag {
        let (key, bytes) = (self.key(name), Bytes::copy_from_slice(bytes));
        retry(|| self.objects.put(&key, bytes.clone(), &Condition::IfAbsent))
            .await
            .expect("an absent key is created")
    }

    async fn what_was_put_is_read(&self) {
        for (name, size) in [("empty", 0_usize), ("one", 1), ("page", 4096), ("big", (5 << 20) + 7)] {
            let bytes: Vec<u8> = (0..=255).cycle().take(size).collect();
            let etag = self.create(name, &bytes).await;
            let object = self.objects.get(&self.key(name)).await.expect("what was put is got");
            assert_eq!(object.bytes, bytes, "what was put is got, byte for byte");
            assert_eq!(object.meta.key, self.key(name));
            assert_eq!(object.meta.etag, etag, "get names the state that put answered");
            assert_eq!(object.meta.size, size as u64);
            let meta = self.objects.head(&self.key(name)).await.expect("what was put has a head");
            assert_eq!(meta, object.meta, "head and get agree");
            assert!(meta.modified.0 > 0, "the store's time is known");
        }
    }

    async fn absent_objects_are_not_found(&self) {
        for name in ["nothing", "nothing/below", "one/below"] {
            let key = self.key(name);
            assert!(
                matches!(self.objects.get(&key).await, Err(ObjectError::NotFound { key: k }) if k == key),
                "get"
            );
            assert!(matches!(self.objects.head(&key).await, Err(ObjectError::NotFound { .. })), "head");
            assert!(
                matches!(self.objects.get_range(&key, 0..1).await, Err(ObjectError::NotFound { .. })),
                "range"
            );
            self.objects.delete(&key).await.expect("deleting an absent object is success");
        }
        self.create("gone", b"x").await;
        for _ in 0..2 {
            self.objects.delete(&self.key("gone")).await.expect("delete, and again");
            assert!(
                self.objects.get(&self.key("gone")).await.is_err_and(|e| e.is_not_found()),
                "gone at once"
            );
        }
    }

    async fn conditions_hold(&self) {
        let key = self.key("condition");
        let first = self.create("condition", b"1").await;
        let put = |text: &'static str, condition: Condition| {
            let key = key.clone();
            async move { retry(|| self.objects.put(&key, Bytes::from_static(text.as_bytes()), &condition)).await }
        };
        let refused = |answer: Result<Etag, ObjectError>, sentence: &str| {
            assert!(matches!(answer, Err(ObjectError::Precondition { .. })), "{sentence}: {answer:?}");
        };
        refused(put("2", Condition::IfAbsent).await, "IfAbsent is refused where something is");
        refused(put("1", Condition::IfAbsent).await, "IfAbsent is refused also for the same bytes");
        let second = put("2", Condition::IfMatch(first.clone())).await.expect("IfMatch of the present state");
        assert_ne!(first, second, "another write is another state");
        refused(put("3", Condition::IfMatch(first.clone())).await, "IfMatch of an old state is refused");
        let never = Etag::new("\"00000000000000000000000000000000\"");
        refused(put("3", Condition::IfMatch(never.clone())).await, "IfMatch of no state is refused");
        assert_eq!(
            self.objects.get(&key).await.expect("it is there").bytes,
            "2",
            "what is refused changes nothing"
        );

        self.objects.delete(&key).await.expect("delete");
        for etag in [first, second, never] {
            let answer = put("4", Condition::IfMatch(etag)).await;
            assert!(
                answer.as_ref().is_err_and(|e| e.is_not_found() || e.is_precondition()),
                "IfMatch on an absent key is refused: {answer:?}"
            );
            assert!(self.objects.head(&key).await.is_err_and(|e| e.is_not_found()), "and makes nothing");
        }
    }

    async fn etags_do_not_come_back(&self) {
        let key = self.key("etags");
        let mut seen = BTreeSet::new();
        for round in 0..20 {
            let mut etag = self.create("etags", format!("{round} a").as_bytes()).await;
            assert!(seen.insert(etag.clone()), "the etag of a create comes back");
            let bytes = Bytes::from(format!("{round} b"));
            let condition = Condition::IfMatch(etag);
            etag = retry(|| self.objects.put(&key, bytes.clone(), &condition)).await.expect("an update");
            assert!(seen.insert(etag), "the etag of an update comes back");
            self.objects.delete(&key).await.expect("delete");
        }
    }

    async fn ranges_are_exact(&self) {
        let bytes: Vec<u8> = (0..200_u8).cycle().take(100_000).collect();
        self.create("range", &bytes).await;
        let key = self.key("range");
        for range in [0..1, 0..100_000, 99_999..100_000, 5..70_000, 0..0, 7..7, 100_000..100_000] {
            let got = self.objects.get_range(&key, range.clone()).await.expect("a range inside");
            let inside = |at: u64| usize::try_from(at).expect("small");
            assert_eq!(got, bytes[inside(range.start)..inside(range.end)], "exactly the bytes of {range:?}");
        }
        #[expect(clippy::reversed_empty_ranges, reason = "a caller's mistake must be an error too")]
        for range in [0..100_001, 99_999..100_001, 100_000..100_001, 200_000..200_001, 100_001..100_001, 9..8]
        {
            let got = self.objects.get_range(&key, range.clone()).await;
            assert!(matches!(got, Err(ObjectError::Range { .. })), "{range:?} is not inside: {got:?}");
        }
    }

    async fn listings_are_sorted_and_complete(&self) {
        // Sorted by bytes, '-' and '.' come before '/', which comes before letters.
        let mut names: Vec<String> =
            ["l/a-b", "l/a/b", "l/a.b", "l/a/c/d", "l/B", "l/b", "l/ab", "l2", "l/z/z"]
                .map(String::from)
                .into();
        names.extend((0..40).map(|i| format!("l/many/{i}")));
        join_all(names.iter().map(|name| self.create(name, name.as_bytes()))).await;
        let listed = |prefix: String| async move {
            let entries =
                list_all(self.objects, &format!("{}/{prefix}", self.prefix)).await.expect("a listing");
            entries
                .into_iter()
                .map(|m| m.key.to_string()[self.prefix.len() + 1..].to_owned())
                .collect::<Vec<_>>()
        };
        for prefix in ["l", "l/", "l/a", "l/a/", "l/many/", "l/many/1", "l/many/39", "l/c", "l/z/z", "l/z/z/"]
        {
            let mut expected: Vec<_> = names.iter().filter(|n| n.starts_with(prefix)).cloned().collect();
            expected.sort();
            assert_eq!(listed(prefix.to_owned()).await, expected, "the listing of {prefix:?}");
        }
        for hostile in ["../", "/", "..", "l//", "l/\0", "l/%"] {
            assert_eq!(listed(hostile.to_owned()).await, Vec::<String>::new(), "the listing of {hostile:?}");
        }
        // From any point on, whether there is such a key or not.
        let mut sorted = names.clone();
        sorted.sort();
        for after in sorted.iter().map(String::as_str).chain(["a", "l/a/0", "l/many", "l/many/155", "m"]) {
            let page = self
                .objects
                .list(&format!("{}/l", self.prefix), Some(&self.key(after)))
                .await
                .expect("a page");
            let expected = sorted.iter().find(|name| name.as_str() > after).map(|name| self.key(name));
            assert_eq!(page.entries.first().map(|m| m.key.clone()), expected, "the listing after {after:?}");
        }
        let entries = list_all(self.objects, &format!("{}/l/", self.prefix)).await.expect("a listing");
        for meta in entries.iter().take(12) {
            assert_eq!(
                &self.objects.head(&meta.key).await.expect("it is there"),
                meta,
                "list and head agree"
            );
        }
        self.objects.delete(&self.key("l/b")).await.expect("delete");
        assert!(!listed("l/".to_owned()).await.contains(&"l/b".to_owned()), "what was deleted is not listed");
        self.create("l/b", b"again").await;
        assert!(listed("l/".to_owned()).await.contains(&"l/b".to_owned()), "what was made again is listed");
    }

    async fn one_of_many_creators_wins(&self) {
        for round in 0..4 {
            let key = self.key(&format!("create-race/{round}"));
            let answers =
                join_all((0..12).map(|i| self.race(&key, format!("writer {i}"), Condition::IfAbsent))).await;
            self.one_winner(&key, answers).await;
        }
    }

    async fn one_of_many_updaters_wins(&self) {
        let mut etag = self.create("update-race", b"0").await;
        for round in 0..4 {
            let key = self.key("update-race");
            let condition = Condition::IfMatch(etag);
            let answers = join_all(
                (0..12).map(|i| self.race(&key, format!("round {round} writer {i}"), condition.clone())),
            )
            .await;
            etag = self.one_winner(&key, answers).await;
        }
    }

    async fn race(
        &self,
        key: &Key,
        text: String,
        condition: Condition,
    ) -> (String, Result<Etag, ObjectError>) {
        let bytes = Bytes::from(text.clone());
        let answer = retry(|| self.objects.put(key, bytes.clone(), &condition)).await;
        (text, answer)
    }

    async fn one_winner(&self, key: &Key, answers: Vec<(String, Result<Etag, ObjectError>)>) -> Etag {
        let object = self.objects.get(key).await.expect("somebody won");
        let mut winners = Vec::new();
        for (text, answer) in answers {
            match answer {
                Ok(etag) => winners.push((text, etag)),
                Err(ObjectError::Precondition { .. }) => {}
                Err(error) => panic!("a loser hears of the condition, not: {error}"),
            }
        }
        assert_eq!(winners.len(), 1, "one of many racing writers wins: {winners:?}");
        assert_eq!(object.bytes, winners[0].0, "the winner's bytes are there");
        assert_eq!(object.meta.etag, winners[0].1, "the winner's etag is there");
        object.meta.etag
    }

    async fn racing_increments_are_not_lost(&self, writers: usize, increments: usize) {
        self.create("counter", b"0").await;
        let key = self.key("counter");
        let last = increment(self.objects, &key, writers, increments).await;
        assert_eq!(last, (writers * increments) as u64, "no increment is lost and none is made twice");
    }

    async fn readers_see_whole_objects(&self) {
        let body = |n: u8| Bytes::from(vec![n; 300_000 + usize::from(n)]);
        let mut etag = self.create("whole", &body(1)).await;
        let key = self.key("whole");
        let write = async {
            for n in 2..12_u8 {
                let condition = Condition::IfMatch(etag.clone());
                etag = retry(|| self.objects.put(&key, body(n), &condition)).await.expect("an update");
            }
        };
        let read = async {
            for _ in 0..20 {
                let bytes = self.objects.get(&key).await.expect("always there").bytes;
                assert_eq!(bytes, body(bytes[0]), "a reader sees one write, whole");
            }
        };
        futures::join!(write, read);
    }

    async fn an_updated_object_is_in_every_listing(&self) {
        let names: Vec<String> = (0..30).map(|i| format!("busy/{i}")).collect();
        let mut etags = join_all(names.iter().map(|name| self.create(name, b"0"))).await;
        let update = async {
            for round in 1..4 {
                for (name, etag) in names.iter().zip(&mut etags) {
                    let (key, bytes) = (self.key(name), Bytes::from(format!("{round}")));
                    let condition = Condition::IfMatch(etag.clone());
                    *etag =
                        retry(|| self.objects.put(&key, bytes.clone(), &condition)).await.expect("an update");
                }
            }
        };
        let list = async {
            for _ in 0..30 {
                let entries =
                    list_all(self.objects, &format!("{}/busy/", self.prefix)).await.expect("a listing");
                assert_eq!(
                    entries.len(),
                    names.len(),
                    "an object that is being updated is in every listing, once"
                );
                tokio::task::yield_now().await;
            }
        };
        futures::join!(update, list);
    }

    async fn clean_up(&self) {
        let prefix = format!("{}/", self.prefix);
        for meta in list_all(self.objects, &prefix).await.expect("a listing") {
            self.objects.delete(&meta.key).await.expect("delete");
        }
        assert!(list_all(self.objects, &prefix).await.expect("a listing").is_empty(), "all is gone");
    }
}
