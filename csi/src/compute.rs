//! CPU and memory of the machine: what an orchestrator may still put beside a volume.
//!
//! They are the machine's, not those of the daemon's own cgroup: its limits say what the daemon may use, and pods run
//! beside it. CPU that is free is what was idle between two looks, so the first look tells nothing of it.

use std::sync::Mutex;
use std::time::Instant;

use proto::node::Compute;
use sysinfo::{MINIMUM_CPU_UPDATE_INTERVAL, System};

/// Looks at the machine. A look reads a page of `/proc`.
#[derive(Debug, Default)]
pub struct Meter(Mutex<Looks>);

#[derive(Debug, Default)]
struct Looks {
    /// Made with the first look.
    system: Option<System>,
    last: Option<Instant>,
    told: Option<Compute>,
}

impl Meter {
    /// Tells what the machine has and what is free; nothing before there were two looks with a little time between.
    pub fn look(&self) -> Option<Compute> {
        let mut looks = self.0.lock().expect("no code panics while it holds this lock");
        let looks = &mut *looks;
        if looks.last.is_some_and(|last| last.elapsed() < MINIMUM_CPU_UPDATE_INTERVAL) {
            // Too close to the last one to tell idle from busy.
            return looks.told;
        }
        let is_first = looks.last.replace(Instant::now()).is_none();
        // A machine that cannot be looked at has told nothing, which is nobody's candidate for a budget.
        let system = match &mut looks.system {
            Some(system) => system,
            none => none.insert(System::new().ok()?),
        };
        system.refresh_memory();
        system.refresh_cpu_usage();
        let cpus = system.cpus().len();
        if !is_first && cpus > 0 {
            looks.told = Some(Compute {
                cpu_millis: u64::try_from(cpus).unwrap_or(u64::MAX).saturating_mul(1_000),
                available_cpu_millis: idle_millis(cpus, system.global_cpu_usage()),
                memory_bytes: system.total_memory(),
                available_memory_bytes: system.available_memory(),
            });
        }
        looks.told
    }
}

/// Thousandths of CPUs that were idle, where all of them were used to `percent`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "between nothing and a few thousand CPUs"
)]
fn idle_millis(cpus: usize, percent: f32) -> u64 {
    let idle = (100.0 - percent).clamp(0.0, 100.0);
    (cpus as f32 * idle * 10.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_cpus_are_counted_in_thousandths() {
        for (cpus, percent, idle) in [(2, 0.0, 2_000), (2, 75.0, 500), (64, 100.0, 0), (4, 100.4, 0)] {
            assert_eq!(idle_millis(cpus, percent), idle, "{cpus} CPUs at {percent} %");
        }
    }

    #[test]
    fn the_second_look_tells_what_the_machine_has() {
        let meter = Meter::default();
        assert_eq!(meter.look(), None);
        std::thread::sleep(MINIMUM_CPU_UPDATE_INTERVAL);
        let told = meter.look().unwrap();
        assert_eq!(
            told.cpu_millis,
            std::fs::read_to_string("/proc/cpuinfo").unwrap().matches("processor\t").count() as u64 * 1_000
        );
        assert!(told.available_cpu_millis <= told.cpu_millis);
        assert!(0 < told.available_memory_bytes && told.available_memory_bytes <= told.memory_bytes);
        assert_eq!(meter.look(), Some(told), "at once again: the same");
    }
}
