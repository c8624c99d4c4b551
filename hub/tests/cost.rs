//! What operations cost: a round trip more is latency for everybody, on every create.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use cas::objects::{CallKind, Fault, FaultStore, MemoryStore, Objects};
use proto::hub::CreateVolumeRequest;
use support::Cluster;

#[tokio::test]
async fn a_create_takes_one_call_of_its_node_and_one_write_for_its_name() {
    let faults = FaultStore::new(Arc::new(MemoryStore::new()));
    let objects: Arc<dyn Objects> = Arc::new(faults.clone());
    let cluster = Cluster::start_on(objects, &["a"]).await;
    let seen = Arc::new(Mutex::new(BTreeMap::<(bool, CallKind), u32>::new()));
    let counted = Arc::clone(&seen);
    faults.plan(move |call| {
        // Sessions beat meanwhile.
        if let Some((kind @ ("name" | "vol"), _)) = call.key.split_once('/') {
            *counted.lock().unwrap().entry((kind == "name", call.kind)).or_default() += 1;
        }
        Fault::None
    });
    let request = CreateVolumeRequest { unique_name: "pvc".into(), ..Default::default() };
    let made = cluster.client().create_volume(request).await.unwrap().into_inner();
    assert_eq!(made.node, "a");
    assert_eq!(made.path, format!("/pool/volumes/{}/data", made.volume_id), "what the node told");
    let node = cluster.node("a");
    assert_eq!((node.calls("create"), node.calls("get")), (1, 0), "the node is asked once");
    let seen = seen.lock().unwrap().clone();
    let asked = |name, kind| seen.get(&(name, kind)).copied().unwrap_or(0);
    assert_eq!((asked(true, CallKind::Get), asked(true, CallKind::Put)), (0, 1), "its name: {seen:?}");
    // The hub looks for an earlier attempt; the node, which writes twice, reads in between. What it wrote it tells.
    assert_eq!((asked(false, CallKind::Get), asked(false, CallKind::Put)), (2, 2), "its record: {seen:?}");
}
