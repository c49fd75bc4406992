//! The ports of this host that lead to guests.

use std::ops::RangeInclusive;
use std::path::Path;

use super::Finding;
use crate::config::Config;
use crate::pool;

const SUBJECT: &str = "ports";

/// What is known of the ports.
#[derive(Debug)]
struct Seen {
    ports: RangeInclusive<u16>,
    /// Those that can't be listened on, and why.
    busy: Vec<(u16, String)>,
    /// Those that a machine of an earlier run has.
    left: Vec<u16>,
    /// Those that the kernel gives to outgoing connections.
    outgoing: Option<RangeInclusive<u16>>,
}

/// Listens on each for a moment, unless a worker runs that uses them.
pub(super) fn look(config: &Config, running: Option<u32>) -> Vec<Finding> {
    if let Some(pid) = running {
        return vec![Finding::skipped(SUBJECT, format!("process {pid} runs as this worker and uses them"))];
    }
    let first = config.pool.ssh_port_base;
    let templates = config.images.values().any(|image| image.template);
    // The one after the last slot's is for machines that templates are made of.
    let last = first.saturating_add(config.pool.slots).saturating_sub(u16::from(!templates));
    let busy = (first..=last).filter_map(|port| Some((port, format!("{:#}", pool::port_is_free(port).err()?))));
    let left = (first..=last).filter(|port| pool::is_left(&config.pool.state_dir, port - first));
    let range = std::fs::read_to_string(Path::new("/proc/sys/net/ipv4/ip_local_port_range"));
    vec![judge(&Seen {
        ports: first..=last,
        busy: busy.collect(),
        left: left.collect(),
        outgoing: range.ok().and_then(|range| outgoing(&range)),
    })]
}

fn judge(seen: &Seen) -> Finding {
    let (first, last) = (*seen.ports.start(), *seen.ports.end());
    let others: Vec<_> = seen.busy.iter().filter(|(port, _)| !seen.left.contains(port)).collect();
    if let Some((_, why)) = others.first() {
        let more = match others.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more of {first} to {last})"),
        };
        return Finding::failed(SUBJECT, format!("{why}{more}"), None);
    }
    if !seen.left.is_empty() {
        let text = format!("machines of an earlier run still have {}", list(&seen.left));
        return Finding::warning(SUBJECT, text, Some("the next start of the worker ends them".to_owned()));
    }
    if let Some(outgoing) = &seen.outgoing
        && first <= *outgoing.end()
        && last >= *outgoing.start()
    {
        let text = format!(
            "{first} to {last} are free now, and among those that the kernel gives to outgoing connections, {} to {}",
            outgoing.start(),
            outgoing.end()
        );
        let remedy = format!("choose a pool.ssh_port_base below {}", outgoing.start());
        return Finding::warning(SUBJECT, text, Some(remedy));
    }
    Finding::ok(SUBJECT, format!("{first} to {last} of 127.0.0.1 are free"))
}

fn list(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// Reads `ip_local_port_range` (ip(7)).
fn outgoing(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn ports_are_free_or_somebody_has_them() {
        let check = |ports: RangeInclusive<u16>, busy: &[u16], left: &[u16], verdict, text: &str| {
            let busy = busy.iter().map(|port| (*port, format!("listen on 127.0.0.1:{port}: in use"))).collect();
            let finding = judge(&Seen { ports, busy, left: left.to_vec(), outgoing: Some(32768..=60999) });
            assert_eq!((finding.verdict, finding.text.as_str()), (verdict, text));
        };
        check(2222..=2224, &[], &[], Verdict::Ok, "2222 to 2224 of 127.0.0.1 are free");
        check(2222..=2224, &[2223], &[], Verdict::Failed, "listen on 127.0.0.1:2223: in use");
        check(
            2222..=2224,
            &[2222, 2223, 2224],
            &[2222],
            Verdict::Failed,
            "listen on 127.0.0.1:2223: in use (and 1 more of 2222 to 2224)",
        );
        check(2222..=2224, &[2222], &[2222], Verdict::Warning, "machines of an earlier run still have 2222");
        let outgoing = "are free now, and among those that the kernel gives to outgoing connections, 32768 to 60999";
        check(32766..=32768, &[], &[], Verdict::Warning, &format!("32766 to 32768 {outgoing}"));
        check(60999..=61003, &[], &[], Verdict::Warning, &format!("60999 to 61003 {outgoing}"));
        check(61000..=61003, &[], &[], Verdict::Ok, "61000 to 61003 of 127.0.0.1 are free");
    }

    #[test]
    fn the_kernels_range_is_two_numbers() {
        let check = |text: &str, expected| assert_eq!(outgoing(text), expected, "{text:?}");
        check("32768\t60999\n", Some(32768..=60999));
        check("32768\n", None);
        check("", None);
        check("a b", None);
    }
}
