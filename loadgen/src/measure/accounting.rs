//! The kernel's accounting of another process: CPU of each thread by its name, memory, and the memory of sockets.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};

/// CPU of a process's threads at one moment.
#[derive(Clone, Debug, Default)]
pub struct CpuTimes {
    /// By thread number: name and nanoseconds on a core.
    threads: BTreeMap<u32, (String, u64)>,
}

impl CpuTimes {
    /// Reads them.
    ///
    /// # Errors
    /// The process is gone.
    pub fn of(pid: u32) -> Result<Self> {
        let folder = format!("/proc/{pid}/task");
        let tasks = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?;
        let mut threads = BTreeMap::new();
        for task in tasks.flatten() {
            let path = task.path();
            let Some(number) = task.file_name().to_str().and_then(|number| number.parse().ok()) else {
                continue;
            };
            // A thread may end between the listing and the look.
            let (Ok(name), Ok(stat)) =
                (fs::read_to_string(path.join("comm")), fs::read_to_string(path.join("stat")))
            else {
                continue;
            };
            let scheduled = fs::read_to_string(path.join("schedstat")).ok();
            let ns = scheduled.as_deref().and_then(schedstat_ns).or_else(|| stat_ns(&stat));
            threads.insert(number, (name.trim_end().to_owned(), ns.unwrap_or(0)));
        }
        Ok(Self { threads })
    }

    /// Nanoseconds spent since `before`, by the kind of thread: names without the number behind them (`gateway-0` is `gateway`).
    pub fn since(&self, before: &Self) -> BTreeMap<String, u64> {
        let mut kinds = BTreeMap::new();
        for (number, (name, ns)) in &self.threads {
            let at_first = before.threads.get(number).map_or(0, |(_, ns)| *ns);
            let spent = ns.saturating_sub(at_first);
            *kinds.entry(kind(name).to_owned()).or_insert(0) += spent;
        }
        kinds.retain(|_, ns| *ns > 0);
        kinds
    }
}

/// The name of a thread without its number.
fn kind(name: &str) -> &str {
    name.trim_end_matches(|letter: char| letter.is_ascii_digit()).trim_end_matches('-')
}

/// The first figure of `/proc/*/schedstat`: nanoseconds on a core.
fn schedstat_ns(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// User and system time of a `/proc/*/stat`, in steps of 10 ms: where the kernel keeps no finer account.
fn stat_ns(text: &str) -> Option<u64> {
    crate::server_process::cpu_of(text).map(|seconds| (seconds * 1e9) as u64)
}

/// Bytes of the process's own memory: what it allocated, without the files it maps.
///
/// # Errors
/// The process is gone, or is another user's.
pub fn process_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    field_kib(&text, "Anonymous:").map(|kib| kib * 1024).with_context(|| format!("{path} names no Anonymous"))
}

/// Begins to note anew the most memory that a process holds.
///
/// # Errors
/// The process is gone, or is another user's.
pub fn forget_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    // 5: the peak of the resident memory, nothing else (proc(5)).
    fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
}

/// Resident bytes of a process: now, and the most since [`forget_peak`].
///
/// # Errors
/// The process is gone.
pub fn resident_bytes(pid: u32) -> Result<(u64, u64)> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let field = |name| field_kib(&text, name).map(|kib| kib * 1024);
    field("VmRSS:").zip(field("VmHWM:")).with_context(|| format!("{path} names no memory"))
}

/// A field `NAME   123 kB`.
fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Bytes that the kernel holds for all sockets of this machine: their objects, their places in epoll and in the table of
/// files, and what is in their buffers. `None` where it does not tell (`/proc/slabinfo` is for root alone).
pub fn kernel_socket_bytes() -> Option<u64> {
    let slabs = slab_bytes(&fs::read_to_string("/proc/slabinfo").ok()?)?;
    let buffers =
        socket_pages(&fs::read_to_string("/proc/net/sockstat").ok()?)? * rustix::param::page_size() as u64;
    Some(slabs + buffers)
}

/// Objects that exist once per socket. Each also has a directory entry, which is counted by the number of socket inodes: most
/// entries are other files'.
const SLABS: [&str; 8] =
    ["TCP", "TCPv6", "UDP", "UDPv6", "sock_inode_cache", "filp", "eventpoll_epi", "eventpoll_pwq"];

fn slab_bytes(text: &str) -> Option<u64> {
    let mut bytes = None;
    let (mut inodes, mut entry_bytes) = (0, 0);
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let Some(name) = fields.next() else { continue };
        let mut number = || fields.next().and_then(|field| field.parse::<u64>().ok());
        let (Some(active), Some(_), Some(size)) = (number(), number(), number()) else { continue };
        match name {
            "dentry" => entry_bytes = size,
            "sock_inode_cache" => inodes = active,
            _ => {}
        }
        if SLABS.contains(&name) {
            bytes = Some(bytes.unwrap_or(0) + active * size);
        }
    }
    Some(bytes? + inodes * entry_bytes)
}

/// The pages in the buffers of TCP and UDP sockets, of `/proc/net/sockstat`.
fn socket_pages(text: &str) -> Option<u64> {
    let mut pages = None;
    for line in text.lines().filter(|line| line.starts_with("TCP:") || line.starts_with("UDP:")) {
        let mut fields = line.split_ascii_whitespace().skip_while(|field| *field != "mem").skip(1);
        pages = Some(pages.unwrap_or(0) + fields.next()?.parse::<u64>().ok()?);
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_of_a_kind() {
        for (name, expected) in
            [("gateway-0", "gateway"), ("router-12", "router"), ("store-commit", "store-commit"), ("7", "")]
        {
            assert_eq!(kind(name), expected);
        }
    }

    #[test]
    fn time_is_what_was_spent_between() {
        let times = |threads: &[(u32, &str, u64)]| CpuTimes {
            threads: threads.iter().map(|(number, name, ns)| (*number, ((*name).to_owned(), *ns))).collect(),
        };
        let before = times(&[(1, "gateway-0", 10), (2, "gateway-1", 5), (3, "router-0", 7)]);
        let after =
            times(&[(1, "gateway-0", 30), (2, "gateway-1", 6), (3, "router-0", 7), (4, "store-log", 2)]);
        let spent: Vec<(String, u64)> = after.since(&before).into_iter().collect();
        assert_eq!(spent, [("gateway".to_owned(), 21), ("store-log".to_owned(), 2)]);
    }

    #[test]
    fn the_kernels_texts_are_read() {
        assert_eq!(schedstat_ns("123456 789 12\n"), Some(123_456));
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 0 0 0 0 30 20 0 0 20 0 1 0 5 0 0";
        assert_eq!(stat_ns(stat), Some(500_000_000));
        assert_eq!(field_kib("Rss:  10 kB\nAnonymous:     112 kB\n", "Anonymous:"), Some(112));
        assert_eq!(field_kib("Rss:  10 kB\n", "Anonymous:"), None);
        let sockstat = "sockets: used 14\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem 206\nUDP: inuse 0 mem 71\n";
        assert_eq!(socket_pages(sockstat), Some(277));
        let slabs = "slabinfo - version: 2.1\n# name <active_objs> ...\nTCP 10 26 2000 13 8 : tunables\n\
                     sock_inode_cache 10 12 800 1 1 :\ndentry 5000 6000 192 21 1 :\n";
        assert_eq!(slab_bytes(slabs), Some(10 * 2_000 + 10 * 800 + 10 * 192));
        assert_eq!(slab_bytes("nothing 1 2 3"), None);
    }

    #[test]
    fn this_process_is_accounted_for() {
        let own = std::process::id();
        assert!(!CpuTimes::of(own).unwrap().threads.is_empty());
        assert!(process_bytes(own).unwrap() > 0);
        forget_peak(own).unwrap();
        let (now, most) = resident_bytes(own).unwrap();
        assert!(now > 0 && most > 0);
    }
}
