//! What the kills fell into.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::call::Op;

/// Where in a call a kill fell: the quarter of the time that such a call usually takes, or after its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Quarter(usize),
    Answered,
}

/// Kills by what they interrupted, and what a kill cost.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    pub(crate) kills: usize,
    /// By the call and who was killed: in each quarter, and after the answer.
    fell: BTreeMap<(Op, String), [usize; 5]>,
    done: BTreeMap<Op, usize>,
    pub(crate) checked: usize,
    spent: BTreeMap<&'static str, Duration>,
}

impl Tally {
    pub(crate) fn kill(&mut self, op: Op, victims: &[String], moment: Moment) {
        self.kills += victims.len();
        let daemon = |victim: &String| if victim == "hub" { "hub" } else { "node" };
        let who = victims.iter().map(daemon).collect::<Vec<_>>().join("+");
        let at = match moment {
            Moment::Quarter(quarter) => quarter.min(3),
            Moment::Answered => 4,
        };
        self.fell.entry((op, who)).or_default()[at] += victims.len();
    }

    pub(crate) fn done(&mut self, op: Op) {
        *self.done.entry(op).or_default() += 1;
    }

    pub(crate) fn spend(&mut self, on: &'static str, time: Duration) {
        *self.spent.entry(on).or_default() += time;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.kills += other.kills;
        self.checked += other.checked;
        for (what, counts) in &other.fell {
            let mine = self.fell.entry(what.clone()).or_default();
            mine.iter_mut().zip(counts).for_each(|(mine, count)| *mine += count);
        }
        for (op, count) in &other.done {
            *self.done.entry(*op).or_default() += count;
        }
        for (on, time) in &other.spent {
            self.spend(on, *time);
        }
    }

    /// How many kills met a call of this kind that was not answered yet.
    pub(crate) fn inside(&self, op: Op) -> usize {
        let of_op = self.fell.iter().filter(|((of, _), _)| *of == op);
        of_op.map(|(_, counts)| counts[..4].iter().sum::<usize>()).sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kills by what they fell into, and when of the time that such a call takes:")?;
        writeln!(
            f,
            "{:<10}{:<10}{:>8}{:>8}{:>8}{:>8}{:>10}",
            "call", "killed", "-25 %", "-50 %", "-75 %", "-100 %", "answered"
        )?;
        for ((op, who), counts) in &self.fell {
            let [first, second, third, fourth, answered] = counts;
            writeln!(
                f,
                "{:<10}{who:<10}{first:>8}{second:>8}{third:>8}{fourth:>8}{answered:>10}",
                format!("{op:?}")
            )?;
        }
        let inside: usize = self.fell.values().flat_map(|counts| &counts[..4]).sum();
        writeln!(
            f,
            "{} kills, {inside} of them inside a call; calls that ended: {:?}",
            self.kills, self.done
        )?;
        writeln!(f, "{} acknowledged versions restored byte-equal", self.checked)?;
        write!(f, "spent on")?;
        for (on, time) in &self.spent {
            write!(f, " {on} {:.1} s", time.as_secs_f64())?;
        }
        Ok(())
    }
}
