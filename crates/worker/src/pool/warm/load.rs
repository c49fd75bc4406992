//! How busy the host is.

/// The load of the last minute for each processor (`/proc/loadavg`, proc(5)). None if the host does not tell.
pub(super) fn load() -> Option<f64> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let load = parse(&std::fs::read_to_string("/proc/loadavg").ok()?)?;
    Some(load / f64::from(u32::try_from(processors).unwrap_or(u32::MAX)))
}

fn parse(loadavg: &str) -> Option<f64> {
    loadavg.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_of_the_last_minute_is_the_first_number() {
        let check = |text: &str, expected| assert_eq!(parse(text), expected, "{text:?}");
        check("0.78 0.48 0.87 2/301 23041\n", Some(0.78));
        check("12.00 0.48 0.87 2/301 23041\n", Some(12.0));
        check("", None);
        check("much", None);
        assert!(load().is_some(), "this host tells its load");
    }
}
