//! How much can still be promised, and where a new volume may go.

use std::time::{Duration, Instant};

use proto::csi::v1 as csi;
use proto::hub::{self, ListNodesRequest};

use super::{CsiController, bounded};
use crate::csi::capability::accesses;
use crate::csi::error::Error;
use crate::csi::facts;

/// For how long what the nodes told is good enough to choose among them, and after what time it is asked for again.
const LATELY: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(500);

/// Which nodes may hold a volume, best first; and whether there is any restriction at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Accessible {
    /// The nodes that were named, preferred ones first.
    pub nodes: Vec<String>,
    /// Whether others will do as well.
    pub anywhere: bool,
}

impl Accessible {
    /// Reads a requirement. Segments of other drivers name no node of ours.
    pub(super) fn parse(driver: &str, requirement: Option<&csi::TopologyRequirement>) -> Self {
        let Some(requirement) = requirement else { return Self { nodes: Vec::new(), anywhere: true } };
        let key = facts::topology_key(driver);
        let mut nodes = Vec::new();
        for topology in requirement.preferred.iter().chain(&requirement.requisite) {
            if let Some(node) = topology.segments.get(&key)
                && !nodes.contains(node)
            {
                nodes.push(node.clone());
            }
        }
        let anywhere = requirement.requisite.is_empty() && nodes.is_empty();
        Self { nodes, anywhere }
    }
}

/// Room on one live node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Room {
    /// Which.
    pub node: String,
    /// What can still be promised.
    pub available_bytes: u64,
    /// All that it ever could.
    pub total_bytes: u64,
}

/// The rooms that the nodes told, and when they were asked for.
#[derive(Debug, Clone)]
pub(super) struct Told {
    looked: Instant,
    rooms: Vec<Room>,
}

impl CsiController {
    /// Lists the nodes.
    pub(super) async fn nodes(&self) -> Result<Vec<hub::Node>, Error> {
        Ok(bounded("listing the nodes", self.hub().list_nodes(ListNodesRequest {})).await?.nodes)
    }

    /// Lists the room on live nodes, as it was told a moment ago. Nothing where nobody has looked lately; one look for a
    /// second of creates is as good as one for each, since nodes tell once in a second.
    pub(super) fn rooms_lately(&self) -> Option<Vec<Room>> {
        let Told { looked, rooms } = self.rooms.lock().expect("no holder of this lock panics").clone()?;
        let age = looked.elapsed();
        if age > AGAIN && age < LATELY {
            let controller = self.clone();
            // Whoever comes next has it; who needs it for sure looks by itself.
            tokio::spawn(async move { drop(controller.rooms().await) });
        }
        (age < LATELY).then_some(rooms)
    }

    /// Lists the room on live nodes.
    pub(super) async fn rooms(&self) -> Result<Vec<Room>, Error> {
        let live = |node: &hub::Node| node.state() == hub::node::State::Live;
        let looked = Instant::now();
        let nodes = self.nodes().await?;
        let rooms: Vec<Room> = nodes
            .into_iter()
            .filter(live)
            .filter_map(|node| {
                let capacity = node.capacity?;
                Some(Room {
                    node: node.node,
                    available_bytes: capacity.available_bytes,
                    total_bytes: capacity.total_bytes,
                })
            })
            .collect();
        *self.rooms.lock().expect("no holder of this lock panics") =
            Some(Told { looked, rooms: rooms.clone() });
        Ok(rooms)
    }

    pub(super) async fn capacity(
        &self,
        request: csi::GetCapacityRequest,
    ) -> Result<csi::GetCapacityResponse, Error> {
        let none = csi::GetCapacityResponse { maximum_volume_size: Some(0), ..Default::default() };
        if !request.volume_capabilities.is_empty() && accesses(&request.volume_capabilities).is_err() {
            return Ok(none);
        }
        let mut rooms = self.rooms().await?;
        if let Some(topology) = request.accessible_topology.filter(|topology| !topology.segments.is_empty()) {
            let wanted = topology.segments.get(&facts::topology_key(&self.driver)).cloned();
            rooms.retain(|room| Some(&room.node) == wanted.as_ref());
        }
        let largest = rooms.iter().map(|room| room.available_bytes).max().unwrap_or(0);
        Ok(csi::GetCapacityResponse {
            available_capacity: facts::bytes(rooms.iter().map(|room| room.available_bytes).sum()),
            maximum_volume_size: Some(facts::bytes(largest)),
            minimum_volume_size: None,
        })
    }
}

/// Chooses the node for a volume of this size: the first of those named that has room, else of any, the emptiest.
pub(super) fn choose(accessible: &Accessible, rooms: &[Room], needed_bytes: u64) -> Result<String, Error> {
    let named = accessible.nodes.iter().filter_map(|node| rooms.iter().find(|room| room.node == *node));
    let mut possible: Vec<&Room> = named.collect();
    if accessible.anywhere {
        possible.extend(rooms);
        possible.sort_by_key(|room| std::cmp::Reverse(room.available_bytes));
    }
    if possible.is_empty() {
        return Err(Error::NoNode);
    }
    if let Some(room) = possible.iter().find(|room| room.available_bytes >= needed_bytes) {
        return Ok(room.node.clone());
    }
    if rooms.iter().all(|room| room.total_bytes < needed_bytes) {
        return Err(Error::Capacity { reason: format!("no node is as large as {needed_bytes} bytes") });
    }
    let most_bytes = possible.iter().map(|room| room.available_bytes).max().unwrap_or(0);
    Err(Error::NoRoom { needed_bytes, most_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Classify as _, Kind};

    fn room(node: &str, available_bytes: u64) -> Room {
        Room { node: node.to_owned(), available_bytes, total_bytes: 100 }
    }

    fn named(nodes: &[&str]) -> Accessible {
        Accessible { nodes: nodes.iter().map(|node| (*node).to_owned()).collect(), anywhere: false }
    }

    #[test]
    fn the_first_node_with_room_is_chosen_and_the_scheduler_is_told_when_there_is_none() {
        let rooms = [room("a", 10), room("b", 50), room("c", 80)];
        let anywhere = Accessible { nodes: Vec::new(), anywhere: true };
        for (accessible, needed, expected) in [
            (named(&["b", "c"]), 20, Ok("b")),
            (named(&["a", "b"]), 20, Ok("b")),
            (named(&["a"]), 20, Err(Kind::ResourceExhausted)),
            (named(&["x"]), 1, Err(Kind::Unavailable)),
            (anywhere.clone(), 20, Ok("c")),
            (anywhere.clone(), 90, Err(Kind::ResourceExhausted)),
            (anywhere, 101, Err(Kind::OutOfRange)),
        ] {
            let chosen = choose(&accessible, &rooms, needed).map_err(|error| error.kind());
            assert_eq!(chosen, expected.map(str::to_owned), "{accessible:?} {needed}");
        }
    }

    #[test]
    fn preferred_nodes_come_first_and_a_foreign_segment_is_no_node() {
        let topology = |node: &str| facts::topology("d", node);
        let requirement = csi::TopologyRequirement {
            requisite: vec![topology("a"), topology("b")],
            preferred: vec![topology("b"), topology("a")],
        };
        assert_eq!(Accessible::parse("d", Some(&requirement)), named(&["b", "a"]));
        assert_eq!(Accessible::parse("other", Some(&requirement)), named(&[]));
        assert!(Accessible::parse("d", None).anywhere);
    }
}
