//! Lists of many records: complete or an error, cheap for the store, steady while records come and go.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use cas::objects::{CallKind, Fault, FaultStore, MemoryStore, Objects};
use cas::record::{NewRecord, Quota, RecordKind};
use cas::{Claim, Heads, Operation, Session, Store, lifecycle};
use proto::hub::{ListVolumesRequest, ListVolumesResponse};
use support::{Cluster, version};
use tonic::Status;
use types::{Domain, PoolId, RequestId, VolumeId};

/// More than two of the hub's largest pages, and more than the store lists at once.
const MANY: usize = 2_300;

/// Somebody who makes records by the rules and tells no hub.
struct Maker {
    session: Session,
    operation: Operation,
    heads: Heads,
}

impl Maker {
    async fn new(store: &Store) -> Self {
        let node = "maker".parse().unwrap();
        let session = Session::join_next(store, PoolId::random(), 0, &node, "host").await.unwrap();
        let domain = Domain::default_domain();
        let operation = session.begin().unwrap();
        let pack = session.next_pack(&domain).await.unwrap();
        session.put_pack(&pack, bytes::Bytes::from_static(b"tree")).await.unwrap();
        let manifest = format!("{pack}:0+4/4").parse().unwrap();
        let heads = cas::entry::data_head(cas::VersionRef { version: version("tree"), manifest });
        Self { session, operation, heads }
    }

    async fn make(&self, store: &Store, number: usize, kind: RecordKind) -> VolumeId {
        let request: RequestId = format!("record-{number}").parse().unwrap();
        let id = VolumeId::for_request("vol", &request);
        let new = NewRecord {
            id: id.clone(),
            kind,
            domain: Domain::default_domain(),
            owner: self.session.id(),
            node: self.session.node().clone(),
            origin: None,
            request,
            quota: Quota { limit_bytes: Some(1 << 30), charge_bytes: 0 },
            attributes: [("number".to_owned(), number.to_string())].into(),
        };
        let begun = lifecycle::begin_create(store, new).await.unwrap().into_inner().value;
        let heads = Some(self.heads.clone());
        lifecycle::finish_create(&self.operation, &Claim::of(&begun), heads, "made").await.unwrap();
        id
    }
}

async fn page(cluster: &Cluster, request: ListVolumesRequest) -> Result<ListVolumesResponse, Status> {
    cluster.client().list_volumes(request).await.map(tonic::Response::into_inner)
}

/// All pages, calling `between` after each.
async fn pages(
    cluster: &Cluster,
    request: ListVolumesRequest,
    mut between: impl AsyncFnMut(),
) -> Result<Vec<String>, Status> {
    let mut ids = Vec::new();
    let mut page_token = String::new();
    loop {
        let answer = page(cluster, ListVolumesRequest { page_token, ..request.clone() }).await?;
        ids.extend(answer.volumes.into_iter().map(|volume| volume.volume_id));
        if answer.next_page_token.is_empty() {
            return Ok(ids);
        }
        page_token = answer.next_page_token;
        between().await;
    }
}

fn all() -> ListVolumesRequest {
    ListVolumesRequest { page_size: 1000, ..Default::default() }
}

#[tokio::test]
async fn a_list_costs_one_listing_and_a_read_of_each_record_that_changed() {
    let faults = FaultStore::new(Arc::new(MemoryStore::new()));
    let objects: Arc<dyn Objects> = Arc::new(faults.clone());
    let cluster = Cluster::start_on(Arc::clone(&objects), &[]).await;
    let maker = Maker::new(&cluster.store).await;
    let mut made = BTreeSet::new();
    for number in 0..MANY {
        made.insert(maker.make(&cluster.store, number, RecordKind::Volume).await.to_string());
    }
    // The hub's own looks at sessions count as gets, of other keys.
    let reads = |faults: &FaultStore| {
        let seen = Arc::new(std::sync::Mutex::new((0_u64, 0_u64)));
        let counted = Arc::clone(&seen);
        faults.plan(move |call| {
            let mut seen = counted.lock().unwrap();
            seen.0 += u64::from(call.kind == CallKind::List && call.key.starts_with("vol/"));
            seen.1 += u64::from(call.kind == CallKind::Get && call.key.starts_with("vol/"));
            Fault::None
        });
        seen
    };
    let first = reads(&faults);
    let listed = pages(&cluster, all(), async || {}).await.unwrap();
    assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), made);
    assert!(listed.is_sorted());
    assert_eq!(listed.len(), made.len(), "each once");
    let listings = first.lock().unwrap().0;
    let again = reads(&faults);
    assert_eq!(pages(&cluster, all(), async || {}).await.unwrap().len(), MANY);
    let (lists, gets) = *again.lock().unwrap();
    assert!(lists <= listings, "one listing of the store for all pages: {lists} of {listings}");
    assert_eq!(gets, 0, "nothing changed, so nothing is read");

    let one = maker.make(&cluster.store, MANY, RecordKind::Snapshot).await;
    let after = reads(&faults);
    assert!(pages(&cluster, all(), async || {}).await.unwrap().contains(&one.to_string()));
    assert_eq!(after.lock().unwrap().1, 1, "only what changed");
    let snapshots = ListVolumesRequest { kind: proto::node::RecordKind::Snapshot.into(), ..all() };
    assert_eq!(pages(&cluster, snapshots, async || {}).await.unwrap(), [one.to_string()]);
    let numbered = ListVolumesRequest { attribute: "number".into(), attribute_value: "7".into(), ..all() };
    assert_eq!(pages(&cluster, numbered, async || {}).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_brief_list_leaves_out_what_only_a_look_at_one_needs() {
    let cluster = Cluster::start(&[]).await;
    let maker = Maker::new(&cluster.store).await;
    maker.make(&cluster.store, 1, RecordKind::Volume).await;
    let whole = page(&cluster, all()).await.unwrap().volumes.remove(0);
    let brief = page(&cluster, ListVolumesRequest { brief: true, ..all() }).await.unwrap().volumes.remove(0);
    assert!(!whole.name.is_empty() && !whole.version.is_empty() && !whole.domain.is_empty());
    let without = proto::hub::Volume {
        name: String::new(),
        version: String::new(),
        session: String::new(),
        domain: String::new(),
        path: String::new(),
        branches: Default::default(),
        pins: Default::default(),
        ..whole
    };
    assert_eq!(brief, without);
}

#[tokio::test]
async fn a_list_that_cannot_be_complete_is_an_error() {
    let faults = FaultStore::new(Arc::new(MemoryStore::new()));
    let objects: Arc<dyn Objects> = Arc::new(faults.clone());
    let cluster = Cluster::start_on(Arc::clone(&objects), &[]).await;
    let maker = Maker::new(&cluster.store).await;
    for number in 0..3 {
        maker.make(&cluster.store, number, RecordKind::Volume).await;
    }
    assert_eq!(pages(&cluster, all(), async || {}).await.unwrap().len(), 3);
    maker.make(&cluster.store, 3, RecordKind::Volume).await;
    for (kind, what) in [(CallKind::List, "the listing"), (CallKind::Get, "a record that changed")] {
        faults.every(kind, "vol/", Fault::Unavailable);
        let error = pages(&cluster, all(), async || {}).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::Unavailable, "{what}: {error}");
    }
    faults.heal();
    assert_eq!(pages(&cluster, all(), async || {}).await.unwrap().len(), 4);
}

#[tokio::test]
async fn what_is_there_for_the_whole_of_a_list_is_in_it_once_whatever_comes_and_goes() {
    let cluster = Cluster::start(&["a"]).await;
    let maker = Maker::new(&cluster.store).await;
    let mut stay = BTreeSet::new();
    for number in 0..60 {
        stay.insert(maker.make(&cluster.store, number, RecordKind::Volume).await.to_string());
    }
    let doomed: Vec<String> = stay.iter().step_by(7).cloned().collect();
    stay.retain(|id| !doomed.contains(id));
    let mut doomed = doomed.into_iter();
    let mut number = 1000;
    let small = ListVolumesRequest { page_size: 5, ..Default::default() };
    let listed = pages(&cluster, small, async || {
        if let Some(id) = doomed.next() {
            let id: VolumeId = id.parse().unwrap();
            let authority = lifecycle::Authority::Owner(maker.session.id());
            lifecycle::delete(&cluster.store, &id, None, authority).await.unwrap();
        }
        maker.make(&cluster.store, number, RecordKind::Volume).await;
        number += 1;
        // Another list reads the store in between.
        pages(&cluster, all(), async || {}).await.unwrap();
    })
    .await
    .unwrap();
    let once: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(once.len(), listed.len(), "nothing twice");
    assert!(stay.is_subset(&once), "nothing is missing");
}

#[tokio::test]
async fn an_id_that_is_not_there_is_told_without_reading_the_store() {
    let faults = FaultStore::new(Arc::new(MemoryStore::new()));
    let objects: Arc<dyn Objects> = Arc::new(faults.clone());
    let cluster = Cluster::start_on(objects, &[]).await;
    pages(&cluster, all(), async || {}).await.unwrap();
    faults.every(CallKind::List, "vol/", Fault::Unavailable);
    let gone =
        proto::hub::GetVolumeRequest { volume_id: "vol-gone".into(), id_only: true, ..Default::default() };
    let error = cluster.client().get_volume(gone).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound, "{error}");
}
