//! Writers in step: what shows whether several places were captured at one instant.

use super::{Installation, Pod, eventually};

const ENOUGH: &str = "/srv/enough";

/// Has the pod's writer end, also when the test does not get that far.
struct Enough<'a>(&'a Installation, &'a Pod);

impl Drop for Enough<'_> {
    fn drop(&mut self) {
        let _ = self.0.try_sh(self.1, &format!("touch {ENOUGH}"));
    }
}

/// Does `work` while the pod counts in every place, in the order they are named, and sees that it went on counting after it.
pub fn while_counting<T>(installation: &Installation, pod: &Pod, places: &[&str], work: impl FnOnce() -> T) -> T {
    let last = places.last().unwrap();
    let line: String = places.iter().map(|at| format!("echo $i >{at}/.step && mv {at}/.step {at}/step; ")).collect();
    let steps = format!("i=0; while [ ! -e {ENOUGH} ]; do i=$((i+1)); {line}done");
    let count = || installation.try_sh(pod, &format!("cat {last}/step")).0.trim().parse::<u64>().ok();
    std::thread::scope(|scope| {
        scope.spawn(|| installation.sh(pod, &steps));
        let _enough = Enough(installation, pod);
        let before = eventually("the pod counts", count);
        let done = work();
        eventually("the pod goes on counting", || count().filter(|now| *now > before));
        done
    })
}

/// What [`while_counting`] leaves in a tree beside the counts' directories.
pub fn is_of_counting(path: &str, places: &[&str]) -> bool {
    path == ENOUGH
        || places.iter().any(|at| path.strip_prefix(at).is_some_and(|rest| matches!(rest, "" | "/step" | "/.step")))
}

/// Whatever instant it is: all places hold the same count, but for those that come after the one being written.
pub fn assert_one_instant(installation: &Installation, pod: &Pod, places: &[&str]) {
    let counts: Vec<u64> =
        places.iter().map(|at| installation.sh(pod, &format!("cat {at}/step")).trim().parse().unwrap()).collect();
    let (first, last) = (counts[0], counts[counts.len() - 1]);
    let is_one = counts.is_sorted_by(|a, b| a >= b) && first - last <= 1;
    assert!(is_one, "{counts:?} in {places:?} are of no single instant");
}
