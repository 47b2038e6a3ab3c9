//! What the kernel says about a process.

use std::time::Duration;

/// Ticks of a second in /proc: 100 on every architecture that Docker runs on, whatever the kernel's own clock does.
const USER_HZ: u64 = 100;

/// User and system time that the process has used so far.
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Format: proc_pid_stat(5). The name in parentheses may hold anything; utime and stime are the 12th and 13th after it.
    let after = stat.rsplit_once(')').unwrap().1;
    let ticks: u64 = after.split_whitespace().skip(11).take(2).map(|f| f.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 1000 / USER_HZ)
}

/// Resident memory now, in bytes.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    kib * 1024
}
