//! The memory that this process can still allocate.

use std::path::Path;

/// Bytes that this process may still allocate: the host's available memory, or the rest of the control group's limit if
/// that is less. `None` if the system does not report them.
pub fn available() -> Option<u128> {
    let host = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| of_meminfo(&text));
    match (host, of_control_group(Path::new("/sys/fs/cgroup"))) {
        (Some(host), Some(group)) => Some(host.min(group)),
        (host, group) => host.or(group),
    }
}

/// Memory available without swapping, plus the free swap space.
fn of_meminfo(text: &str) -> Option<u128> {
    let kilobytes = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u128>().ok()
    };
    Some((kilobytes("MemAvailable")? + kilobytes("SwapFree").unwrap_or(0)) * 1024)
}

/// The limit of a control group minus the memory of its processes. Pages of files do not count, because they can be
/// dropped.
fn of_control_group(dir: &Path) -> Option<u128> {
    let number = |name: &str| std::fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u128>().ok();
    let limit = number("memory.max")?;
    let statistics = std::fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let pages = |key: &str| statistics.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u128>().ok());
    let dropped = pages("active_file ").unwrap_or(0) + pages("inactive_file ").unwrap_or(0);
    Some(limit.saturating_sub(number("memory.current")?.saturating_sub(dropped)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_system_are_read() {
        let text = "MemTotal:       24689440 kB\nMemFree:  1 kB\nMemAvailable:   20000000 kB\nSwapFree:  1000 kB\n";
        assert_eq!(of_meminfo(text), Some(20_001_000 * 1024));
        assert_eq!(of_meminfo("MemTotal: 1 kB"), None);
        let dir = std::env::temp_dir().join(format!("tpc-memory-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
        write("memory.max", "max\n");
        assert_eq!(of_control_group(&dir), None);
        write("memory.max", "1000\n");
        write("memory.current", "700\n");
        write("memory.stat", "anon 300\nactive_file 100\ninactive_file 250\n");
        assert_eq!(of_control_group(&dir), Some(650));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
