//! A deletion that expects an attribute not to be there, as CSI's does of an attachment, and the attachment itself: the
//! record puts them in order, whichever hub they come through, and the second is told.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cas::objects::{CallKind, Fault, FaultStore, MemoryStore, Objects};
use hub::Settings;
use proto::hub as api;
use proto::hub::hub_client::HubClient;
use support::{Cluster, TIMINGS, TestHub, eventually};
use tokio::net::TcpListener;
use tonic::transport::Channel;
use tonic::{Code, Status};

const HELD_BY: &str = "csi/node";

async fn attach(mut hub: HubClient<Channel>, volume_id: String) -> Result<(), Status> {
    let pair = |value: &str| [(HELD_BY.to_owned(), value.to_owned())].into();
    let request = api::SetAttributesRequest { volume_id, attributes: pair("a"), expected: pair("") };
    hub.set_attributes(request).await.map(drop)
}

async fn delete(mut hub: HubClient<Channel>, volume_id: String) -> Result<(), Status> {
    let expected = [(HELD_BY.to_owned(), String::new())].into();
    hub.delete_volume(api::DeleteVolumeRequest { volume_id, expected }).await.map(drop)
}

/// What is held at its write to the store while the other runs to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Delete,
    Attach,
}

async fn race(held: Held, two_hubs: bool) {
    let faults = FaultStore::new(Arc::new(MemoryStore::new()));
    let objects: Arc<dyn Objects> = Arc::new(faults.clone());
    let cluster = Cluster::start_on(Arc::clone(&objects), &["a"]).await;
    let request = api::CreateVolumeRequest { request_id: "make".into(), ..Default::default() };
    let volume = cluster.client().create_volume(request).await.unwrap().into_inner().volume_id;
    let second = if two_hubs {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = Settings { timings: TIMINGS, ..Settings::default() };
        Some(TestHub::start_as(&objects, listener, settings).await)
    } else {
        None
    };
    let address = second.as_ref().map_or(cluster.hub.address, |hub| hub.address);
    let (deleting, attaching) =
        (cluster.client(), proto::client::hub(proto::client::channel(&address.to_string()).unwrap()));

    let at_write = Arc::new(AtomicBool::new(false));
    let word = match held {
        Held::Delete => "\"deleted\"",
        Held::Attach => HELD_BY,
    };
    let (reached, key) = (Arc::clone(&at_write), format!("vol/{volume}"));
    faults.plan(move |call| {
        let is_it = call.kind == CallKind::Put
            && call.key == key
            && String::from_utf8_lossy(&call.bytes).contains(word);
        if is_it && !reached.swap(true, Ordering::SeqCst) { Fault::Stall } else { Fault::None }
    });
    let first = match held {
        Held::Delete => tokio::spawn(delete(deleting.clone(), volume.clone())),
        Held::Attach => tokio::spawn(attach(attaching.clone(), volume.clone())),
    };
    eventually("the first is at its write", async || at_write.load(Ordering::SeqCst)).await;
    let other = match held {
        Held::Delete => attach(attaching.clone(), volume.clone()).await,
        Held::Attach => delete(deleting.clone(), volume.clone()).await,
    };
    faults.heal();
    let first = first.await.unwrap();
    other.unwrap_or_else(|status| panic!("{held:?}: the one that is not held: {status}"));
    let refused = first.expect_err("both succeeded");
    let get = api::GetVolumeRequest { volume_id: volume.clone(), id_only: true, ..Default::default() };
    let found = cluster.client().get_volume(get).await;
    match held {
        Held::Delete => {
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            assert!(refused.message().contains(HELD_BY), "{refused}");
            let kept = found.unwrap().into_inner();
            assert_eq!((kept.attributes[HELD_BY].as_str(), kept.node.as_str()), ("a", "a"), "as before");
        }
        Held::Attach => {
            assert_eq!(refused.code(), Code::NotFound, "{refused}");
            assert_eq!(found.unwrap_err().code(), Code::NotFound);
        }
    }
}

#[tokio::test]
async fn a_deletion_and_an_attachment_never_both_succeed() {
    for held in [Held::Delete, Held::Attach] {
        for two_hubs in [false, true] {
            race(held, two_hubs).await;
        }
    }
}

#[tokio::test]
async fn a_volume_that_sleeps_is_deleted_only_where_its_attributes_are_as_expected() {
    let cluster = Cluster::start(&["a"]).await;
    let request = api::CreateVolumeRequest { request_id: "make".into(), ..Default::default() };
    let volume = cluster.client().create_volume(request).await.unwrap().into_inner().volume_id;
    attach(cluster.client(), volume.clone()).await.unwrap();
    let asleep = api::HibernateVolumeRequest { volume_id: volume.clone() };
    cluster.client().hibernate_volume(asleep).await.unwrap();
    let refused = delete(cluster.client(), volume.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    // An operator's expects nothing.
    let request = api::DeleteVolumeRequest { volume_id: volume.clone(), ..Default::default() };
    cluster.client().delete_volume(request).await.unwrap();
    delete(cluster.client(), volume).await.unwrap();
}

#[tokio::test]
async fn the_other_nodes_that_have_something_of_a_deleted_volume_drop_it() {
    let cluster = Cluster::start(&["a", "b"]).await;
    let request =
        api::CreateVolumeRequest { request_id: "make".into(), node: "a".into(), ..Default::default() };
    let volume = cluster.client().create_volume(request).await.unwrap().into_inner().volume_id;
    // A move leaves a copy where it was.
    let there = api::MoveVolumeRequest { volume_id: volume.clone(), node: "b".into() };
    cluster.client().move_volume(there).await.unwrap();
    let id = volume.parse().unwrap();
    let has = |node: &str| cluster.node(node).disk.lock().unwrap().copies.contains_key(&id);
    assert!(has("a") && has("b"));
    eventually("the hub hears of the copy", async || {
        let name = "a".parse().unwrap();
        cluster.hub.hub.nodes.live_by_name(&name).is_some_and(|node| node.has_content(&id, None))
    })
    .await;
    delete(cluster.client(), volume.clone()).await.unwrap();
    eventually("both copies are gone", async || !has("a") && !has("b")).await;
}
