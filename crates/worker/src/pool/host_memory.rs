//! How much memory there is for machines: the host's, or that of the worker's control group if it is less.

use std::path::{Path, PathBuf};

/// Where control groups (version 2) are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The memory in MiB that machines may have altogether if the configuration does not say: all there is but for an eighth,
/// which is left to the host's system and its file cache. None if the host does not tell.
pub(crate) fn budget_mib() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let host = total(&read(Path::new("/proc/meminfo"))?)?;
    let limits = group(&read(Path::new("/proc/self/cgroup")).unwrap_or_default())
        .ancestors()
        .filter_map(|group| limit(&read(&Path::new(CGROUPS).join(group).join("memory.max"))?))
        .collect::<Vec<_>>();
    let bytes = limits.into_iter().fold(host, u64::min);
    Some((bytes - bytes / 8) >> 20)
}

/// The host's memory in bytes (`/proc/meminfo`, proc(5)).
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The path of this process's control group below the root of all (`/proc/self/cgroup`, cgroups(7)); the root itself where
/// there are none of version 2.
fn group(cgroup: &str) -> PathBuf {
    let group = cgroup.lines().find_map(|line| line.strip_prefix("0::/"));
    PathBuf::from(group.unwrap_or_default())
}

/// The limit in bytes, if there is one (`memory.max`).
fn limit(memory_max: &str) -> Option<u64> {
    memory_max.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_memory_is_a_line_of_meminfo() {
        let check = |text: &str, expected| assert_eq!(total(text), expected, "{text:?}");
        check("MemTotal:       24684084 kB\nMemFree:        18401932 kB\n", Some(24_684_084 * 1024));
        check("MemFree:        18401932 kB\nMemTotal: 1 kB", Some(1024));
        check("MemTotal:       24684084\n", None);
        check("MemTotal: 99999999999999999999 kB\n", None);
        check("MemTotal: 18446744073709551615 kB\n", None);
        check("", None);
    }

    #[test]
    fn a_control_group_is_that_of_version_2() {
        let check = |text: &str, expected: &str| assert_eq!(group(text), PathBuf::from(expected), "{text:?}");
        check("0::/system.slice/kvm-worker.service\n", "system.slice/kvm-worker.service");
        check("4:memory:/process_api/x\n1:cpu:/\n0::/\n", "");
        check("4:memory:/process_api/x\n", "");
        check("", "");
    }

    #[test]
    fn a_control_group_has_a_limit_or_none() {
        let check = |text: &str, expected| assert_eq!(limit(text), expected, "{text:?}");
        check("2147483648\n", Some(2_147_483_648));
        check("max\n", None);
        check("", None);
    }

    #[test]
    fn this_host_has_memory_for_machines() {
        let budget = budget_mib().expect("Linux tells how much memory it has");
        assert!(budget > 0);
    }
}
