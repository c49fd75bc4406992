//! Whether the host has the memory and the disk space that machines take.

use std::path::Path;

use super::Finding;
use crate::config::Config;
use crate::pool::{self, Excess, QEMU_MIB, Space};

/// What is known of the host, and wanted of it.
#[derive(Debug, Clone)]
struct Seen {
    images: Vec<Wanted>,
    slots: u16,
    /// What machines may have altogether, in MiB.
    budget_mib: Option<u64>,
    /// What they may have if nothing is configured, in MiB.
    host_mib: Option<u64>,
    /// The file system of the state directory.
    space: Option<Space>,
    low_water_mib: u64,
}

/// What a machine of an image takes.
#[derive(Debug, Clone)]
struct Wanted {
    image: String,
    /// With what QEMU takes.
    memory_mib: u64,
    overlay_mib: Option<u64>,
    template: bool,
}

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let pool = &config.pool;
    let host_mib = pool::host_memory_mib();
    let wanted = config.images.iter().map(|(name, image)| Wanted {
        image: name.to_string(),
        memory_mib: u64::from(image.memory_mib) + QEMU_MIB,
        overlay_mib: image.overlay_limit_mib.map(u64::from),
        template: image.template,
    });
    let seen = Seen {
        images: wanted.collect(),
        slots: pool.slots,
        budget_mib: pool.memory_budget_mib.or(host_mib),
        host_mib,
        space: space(&pool.state_dir),
        low_water_mib: pool.disk_low_water_mib,
    };
    vec![memory(&seen), disk(&seen)]
}

/// The file system that a directory is on, or will be.
fn space(directory: &Path) -> Option<Space> {
    let there = directory.ancestors().find(|directory| directory.exists())?;
    Space::of(there).ok()
}

fn memory(seen: &Seen) -> Finding {
    let subject = "memory";
    let Some(budget_mib) = seen.budget_mib else {
        return Finding::skipped(subject, "the host does not tell how much it has");
    };
    let excess = |wanted: &&Wanted| wanted.memory_mib > budget_mib;
    if let Some(wanted) = seen.images.iter().find(excess) {
        let excess = Excess::Memory { needed_mib: wanted.memory_mib, budget_mib };
        return Finding::failed(subject, format!("no machine of image '{}' will start: {excess}", wanted.image), None);
    }
    if let Some(host_mib) = seen.host_mib.filter(|host_mib| budget_mib > *host_mib) {
        let text = format!("pool.memory_budget_mib is {budget_mib}, and this host has {host_mib} MiB for machines");
        return Finding::warning(subject, text, Some("lower it, or machines push each other out of memory".to_owned()));
    }
    let slots = u64::from(seen.slots);
    match seen.images.iter().max_by_key(|wanted| wanted.memory_mib) {
        Some(Wanted { image, memory_mib, .. }) if memory_mib * slots > budget_mib => Finding::warning(
            subject,
            format!(
                "of {slots} slots {} can have a machine of image '{image}' at a time ({memory_mib} of {budget_mib} MiB each)",
                budget_mib / memory_mib
            ),
            Some("have fewer slots or smaller guests, unless others take turns with them".to_owned()),
        ),
        _ => Finding::ok(subject, format!("{budget_mib} MiB for machines, enough for {slots} of any image at a time")),
    }
}

fn disk(seen: &Seen) -> Finding {
    let subject = "disk";
    let Some(Space { free_mib, total_mib }) = seen.space else {
        return Finding::skipped(subject, "the file system of pool.state_dir does not tell how much is free");
    };
    let low_water_mib = seen.low_water_mib;
    let limits = || seen.images.iter().filter_map(|wanted| Some((wanted, wanted.overlay_mib?)));
    if let Some((wanted, limit_mib)) = limits().find(|(_, limit_mib)| limit_mib + low_water_mib > total_mib) {
        let excess = Excess::Disk { limit_mib, low_water_mib, total_mib };
        return Finding::failed(subject, format!("no machine of image '{}' will start: {excess}", wanted.image), None);
    }
    let room = "make room on the file system of pool.state_dir";
    if free_mib < low_water_mib {
        let text = format!(
            "{free_mib} MiB are free, and no machine starts with less than {low_water_mib} (pool.disk_low_water_mib)"
        );
        return Finding::failed(subject, text, Some(format!("{room}; kvm-worker image gc may help")));
    }
    let left_mib = free_mib - low_water_mib;
    if let Some((wanted, limit_mib)) = limits().max_by_key(|(_, limit_mib)| *limit_mib)
        && limit_mib * u64::from(seen.slots) > left_mib
    {
        let text = format!(
            "{left_mib} MiB are free for overlays, enough for {} of {} machines of image '{}' (overlay_limit_mib {limit_mib})",
            left_mib / limit_mib.max(1),
            seen.slots,
            wanted.image
        );
        return Finding::warning(subject, text, Some(format!("{room}, or lower the limit")));
    }
    // All of a guest's memory may come to be in a file.
    let template = seen.images.iter().filter(|wanted| wanted.template).max_by_key(|wanted| wanted.memory_mib);
    if let Some(wanted) = template.filter(|wanted| wanted.memory_mib > left_mib) {
        let text = format!(
            "{left_mib} MiB are free, and a template of image '{}' may take {}",
            wanted.image, wanted.memory_mib
        );
        return Finding::warning(subject, text, Some(room.to_owned()));
    }
    Finding::ok(subject, format!("{free_mib} MiB are free, {low_water_mib} of which stay so (pool.disk_low_water_mib)"))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn seen() -> Seen {
        let wanted = |image: &str, memory_mib, overlay_mib, template| Wanted {
            image: image.to_owned(),
            memory_mib,
            overlay_mib,
            template,
        };
        Seen {
            images: vec![wanted("small", 512, None, true), wanted("large", 4224, Some(10_000), false)],
            slots: 2,
            budget_mib: Some(16_384),
            host_mib: Some(16_384),
            space: Some(Space { free_mib: 100_000, total_mib: 200_000 }),
            low_water_mib: 1024,
        }
    }

    #[track_caller]
    fn check(finding: &Finding, verdict: Verdict, text: &str) {
        assert_eq!((finding.verdict, finding.text.contains(text)), (verdict, true), "{finding:?}");
    }

    #[test]
    fn memory_is_enough_for_some_machines_or_none() {
        check(&memory(&seen()), Verdict::Ok, "16384 MiB for machines");
        let less = |budget_mib| Seen { budget_mib, ..seen() };
        check(&memory(&less(Some(8000))), Verdict::Warning, "of 2 slots 1 can have a machine of image 'large'");
        check(&memory(&less(Some(4000))), Verdict::Failed, "no machine of image 'large' will start: it needs 4224 MiB");
        check(&memory(&less(None)), Verdict::Skipped, "");
        check(&memory(&Seen { host_mib: Some(9000), ..seen() }), Verdict::Warning, "this host has 9000 MiB");
    }

    #[test]
    fn disk_space_is_enough_for_overlays_and_templates_or_not() {
        check(&disk(&seen()), Verdict::Ok, "100000 MiB are free");
        let free = |free_mib| Seen { space: Some(Space { free_mib, total_mib: 200_000 }), ..seen() };
        check(&disk(&free(1000)), Verdict::Failed, "1000 MiB are free, and no machine starts with less than 1024");
        check(&disk(&free(12_000)), Verdict::Warning, "10976 MiB are free for overlays, enough for 1 of 2 machines");
        let total = Seen { space: Some(Space { free_mib: 10_500, total_mib: 10_500 }), ..seen() };
        check(&disk(&total), Verdict::Failed, "no machine of image 'large' will start: its disk may grow to 10000 MiB");
        let mut template = free(1200);
        template.images.truncate(1);
        check(&disk(&template), Verdict::Warning, "a template of image 'small' may take 512");
        check(&disk(&Seen { space: None, ..seen() }), Verdict::Skipped, "");
    }
}
