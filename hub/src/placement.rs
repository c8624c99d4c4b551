//! Decides where a volume goes: a pure function over what the nodes said last.

use types::NodeName;

/// A node needs this much room for anything new: metadata of a few trees, and a little to write in.
pub const RESERVE_BYTES: u64 = 64 << 20;

/// A node that could take a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub node: NodeName,
    /// What it said about its pool; nothing before its first heartbeat.
    pub room: Option<Room>,
    /// What is free of its CPU and memory; nothing before it has said so.
    pub free: Option<Budget>,
    /// The content that the volume begins with is there already.
    pub has_content: bool,
}

/// Room in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The pool's size.
    pub total_bytes: u64,
    /// What can still be promised.
    pub available_bytes: u64,
    /// How many volumes live there.
    pub volumes: u32,
}

/// CPU and memory: what is free on a node, or wanted there beside the volume. Nothing wanted is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

impl Budget {
    /// Tells if this much is free on a node. One that has not said what it has fits what wants nothing.
    pub fn fits(&self, free: Option<Self>) -> bool {
        let free = free.unwrap_or_default();
        self.cpu_millis <= free.cpu_millis && self.memory_bytes <= free.memory_bytes
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let memory = types::ByteSize(self.memory_bytes);
        write!(f, "{}.{:03} CPU and {memory} of memory", self.cpu_millis / 1_000, self.cpu_millis % 1_000)
    }
}

/// What is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// There and nowhere else.
    pub required: Option<NodeName>,
    /// There if possible.
    pub hint: Option<NodeName>,
    /// One of these; empty: any.
    pub allowed: Vec<NodeName>,
    /// What its content takes on a node that has none of it.
    pub content_bytes: u64,
    /// What will be put beside it.
    pub budget: Budget,
}

/// Why no node will do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// The node that was asked for is not live.
    #[error("node {node} is not live; `sailctl nodes` shows which are")]
    NotLive {
        /// The node that was asked for.
        node: NodeName,
    },
    /// No node of those allowed is live.
    #[error("no live node can take it{}", among(.allowed))]
    NoneLive {
        /// The nodes it was limited to.
        allowed: Vec<NodeName>,
    },
    /// All that are live are full.
    #[error("no node has room for {} ({} nodes looked at)", types::ByteSize(*.needed_bytes), .nodes)]
    Full {
        /// What was needed.
        needed_bytes: u64,
        /// How many live nodes were looked at.
        nodes: usize,
    },
    /// All that have room for it are busy.
    #[error("no node has {wanted} free: {}", have(.nodes))]
    Busy {
        /// What was wanted.
        wanted: Budget,
        /// What is free on those that were looked at.
        nodes: Vec<(NodeName, Option<Budget>)>,
    },
}

fn have(nodes: &[(NodeName, Option<Budget>)]) -> String {
    let one = |(node, free): &(NodeName, Option<Budget>)| match free {
        Some(free) => format!("{node} has {free}"),
        None => format!("{node} has not said yet"),
    };
    nodes.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn among(allowed: &[NodeName]) -> String {
    if allowed.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = allowed.iter().map(NodeName::as_str).collect();
    format!(" (candidates: {})", names.join(", "))
}

/// Sorts the live nodes that can take it, best first: the hint, then where the content is, then the emptier pool (in
/// tenths), then fewer volumes, then by name, so that the same question has the same answer.
pub fn place(wish: &Wish, live: &[Candidate]) -> Result<Vec<NodeName>, NoPlace> {
    if let Some(node) = &wish.required
        && !live.iter().any(|candidate| candidate.node == *node)
    {
        return Err(NoPlace::NotLive { node: node.clone() });
    }
    let allowed = |node: &NodeName| {
        wish.required.as_ref().is_none_or(|required| required == node)
            && (wish.allowed.is_empty() || wish.allowed.contains(node))
    };
    let possible: Vec<&Candidate> = live.iter().filter(|candidate| allowed(&candidate.node)).collect();
    if possible.is_empty() {
        return Err(NoPlace::NoneLive { allowed: wish.allowed.clone() });
    }
    let needed = |candidate: &Candidate| {
        RESERVE_BYTES.saturating_add(if candidate.has_content { 0 } else { wish.content_bytes })
    };
    let mut fitting: Vec<&Candidate> = possible
        .iter()
        .copied()
        .filter(|candidate| candidate.room.is_none_or(|room| room.available_bytes >= needed(candidate)))
        .collect();
    if fitting.is_empty() {
        let needed_bytes = possible.iter().map(|candidate| needed(candidate)).min().unwrap_or(RESERVE_BYTES);
        return Err(NoPlace::Full { needed_bytes, nodes: possible.len() });
    }
    let looked_at = || fitting.iter().map(|candidate| (candidate.node.clone(), candidate.free)).collect();
    if !fitting.iter().any(|candidate| wish.budget.fits(candidate.free)) {
        return Err(NoPlace::Busy { wanted: wish.budget, nodes: looked_at() });
    }
    fitting.retain(|candidate| wish.budget.fits(candidate.free));
    fitting.sort_by_key(|candidate| {
        (
            wish.hint.as_ref() != Some(&candidate.node),
            !candidate.has_content,
            candidate.room.map_or(10, used_tenths),
            candidate.room.map_or(u32::MAX, |room| room.volumes),
            candidate.node.clone(),
        )
    });
    Ok(fitting.into_iter().map(|candidate| candidate.node.clone()).collect())
}

fn used_tenths(room: Room) -> u64 {
    let used = room.total_bytes.saturating_sub(room.available_bytes);
    used.saturating_mul(10).checked_div(room.total_bytes).unwrap_or(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn node(name: &str, available: u64, volumes: u32, has_content: bool) -> Candidate {
        Candidate {
            node: name.parse().unwrap(),
            room: Some(Room { total_bytes: 100 * GIB, available_bytes: available, volumes }),
            free: None,
            has_content,
        }
    }

    fn names(wish: &Wish, live: &[Candidate]) -> Result<Vec<String>, NoPlace> {
        place(wish, live).map(|nodes| nodes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_best_node_comes_first() {
        let some = |name: &str| Some(name.parse::<NodeName>().unwrap());
        let table: [(&str, Wish, Vec<Candidate>, Vec<&str>); 9] = [
            (
                "by name when all is equal",
                Wish::default(),
                vec![node("b", GIB, 1, false), node("a", GIB, 1, false)],
                vec!["a", "b"],
            ),
            (
                "fewer volumes",
                Wish::default(),
                vec![node("a", GIB, 9, false), node("b", GIB, 1, false)],
                vec!["b", "a"],
            ),
            (
                "the emptier pool before fewer volumes",
                Wish::default(),
                vec![node("a", 20 * GIB, 1, false), node("b", 90 * GIB, 9, false)],
                vec!["b", "a"],
            ),
            (
                "a little emptier is not emptier",
                Wish::default(),
                vec![node("a", 85 * GIB, 2, false), node("b", 89 * GIB, 3, false)],
                vec!["a", "b"],
            ),
            (
                "the content before the emptier pool",
                Wish::default(),
                vec![node("a", 90 * GIB, 0, false), node("b", GIB, 9, true)],
                vec!["b", "a"],
            ),
            (
                "the hint before the content",
                Wish { hint: some("a"), ..Wish::default() },
                vec![node("a", GIB, 9, false), node("b", 90 * GIB, 0, true)],
                vec!["a", "b"],
            ),
            (
                "a hint that is not live is only a hint",
                Wish { hint: some("z"), ..Wish::default() },
                vec![node("a", GIB, 0, false)],
                vec!["a"],
            ),
            (
                "the node asked for alone",
                Wish { required: some("b"), ..Wish::default() },
                vec![node("a", 90 * GIB, 0, true), node("b", GIB, 9, false)],
                vec!["b"],
            ),
            (
                "only those allowed",
                Wish { allowed: vec!["b".parse().unwrap(), "c".parse().unwrap()], ..Wish::default() },
                vec![node("a", 90 * GIB, 0, true), node("b", GIB, 9, false)],
                vec!["b"],
            ),
        ];
        for (what, wish, live, best_first) in table {
            assert_eq!(names(&wish, &live).unwrap(), best_first, "{what}");
        }
    }

    #[test]
    fn a_full_node_is_passed_over_unless_the_content_is_there() {
        let wish = Wish { content_bytes: 3 * GIB, ..Wish::default() };
        let live = [node("a", 2 * GIB, 0, false), node("b", 2 * GIB, 0, true), node("c", 4 * GIB, 9, false)];
        assert_eq!(names(&wish, &live).unwrap(), ["b", "c"]);
        let full = [node("a", RESERVE_BYTES - 1, 0, true)];
        assert_eq!(names(&wish, &full).unwrap_err(), NoPlace::Full { needed_bytes: RESERVE_BYTES, nodes: 1 });
    }

    #[test]
    fn a_node_that_has_not_said_how_full_it_is_comes_last_but_counts() {
        let unknown = Candidate { node: "a".parse().unwrap(), room: None, free: None, has_content: false };
        assert_eq!(names(&Wish::default(), &[unknown, node("b", GIB, 0, false)]).unwrap(), ["b", "a"]);
    }

    #[test]
    fn a_budget_leaves_out_busy_nodes_and_says_what_they_have() {
        let busy = |name: &str, cpu_millis, memory| Candidate {
            free: Some(Budget { cpu_millis, memory_bytes: memory * GIB }),
            ..node(name, GIB, 0, name == "a")
        };
        let live = [busy("a", 500, 8), busy("b", 4_000, 1), busy("c", 2_000, 4), node("d", GIB, 0, false)];
        let wish = |cpu_millis, memory, only: Option<&str>| Wish {
            budget: Budget { cpu_millis, memory_bytes: memory * GIB },
            required: only.map(|node| node.parse().unwrap()),
            ..Wish::default()
        };
        let table: [(&str, Wish, &[&str]); 5] = [
            ("nothing asked, nothing left out", wish(0, 0, None), &["a", "b", "c", "d"]),
            ("CPU", wish(1_000, 0, None), &["b", "c"]),
            ("memory", wish(0, 4, None), &["a", "c"]),
            ("both, exactly", wish(2_000, 4, None), &["c"]),
            ("on the node asked for", wish(4_000, 1, Some("b")), &["b"]),
        ];
        for (what, wish, best_first) in table {
            assert_eq!(names(&wish, &live).unwrap(), best_first, "{what}");
        }
        let error = names(&wish(1_500, 8, None), &live).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no node has 1.500 CPU and 8.0 GiB of memory free: a has 0.500 CPU and 8.0 GiB of memory; \
             b has 4.000 CPU and 1.0 GiB of memory; c has 2.000 CPU and 4.0 GiB of memory; d has not said yet"
        );
        let error = names(&wish(1_000, 0, Some("a")), &live).unwrap_err();
        assert!(matches!(error, NoPlace::Busy { nodes, .. } if nodes.len() == 1));
    }

    #[test]
    fn no_place_says_why() {
        let required = Wish { required: Some("b".parse().unwrap()), ..Wish::default() };
        let live = [node("a", GIB, 0, false)];
        assert!(place(&required, &live).unwrap_err().to_string().starts_with("node b is not live"));
        let allowed = Wish { allowed: vec!["b".parse().unwrap()], ..Wish::default() };
        assert_eq!(
            place(&allowed, &live).unwrap_err().to_string(),
            "no live node can take it (candidates: b)"
        );
        assert_eq!(place(&Wish::default(), &[]).unwrap_err().to_string(), "no live node can take it");
    }
}
