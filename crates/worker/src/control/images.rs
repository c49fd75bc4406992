//! What is told of images as a whole, and of what nothing uses any more.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::TemplateState;
use super::message::Printable;

/// How an image is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImageLine {
    pub image: String,
    pub disk: String,
    /// What the disk takes of the host's, in bytes; none if it is not there.
    pub bytes: Option<u64>,
    /// Which generation machines start from; none if that is not known.
    pub generation: Option<u32>,
    /// The newest.
    pub newest: u32,
    /// What only a running worker knows.
    pub running: Option<Running>,
}

/// What a running worker does with an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub template: TemplateState,
    /// How many machines are ready, of so many that are wanted.
    pub warm: usize,
    pub warm_wanted: usize,
    /// How many machines builds and people have.
    pub machines: usize,
}

/// What came of removing what nothing uses any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Garbage {
    /// Whether nothing was removed, and it is only said what would be.
    pub dry_run: bool,
    pub removed: Vec<GarbageLine>,
    /// What could not be removed.
    pub failed: Vec<GarbageLine>,
    /// What nothing in the configuration uses, and stays.
    pub kept: Vec<GarbageLine>,
}

/// A thing that nothing uses any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GarbageLine {
    pub what: String,
    pub path: String,
    /// What it takes of the host's disk, in bytes.
    pub bytes: u64,
    /// Why it goes, or does not.
    pub why: String,
}

/// The images as a table.
pub(crate) struct ImageTable<'a>(pub &'a [ImageLine]);

impl fmt::Display for ImageTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = ["IMAGE", "GENERATION", "TEMPLATE", "WARM", "MACHINES", "SIZE", "DISK"].map(str::to_owned);
        write_table(f, std::iter::once(heading.to_vec()).chain(self.0.iter().map(row)).collect())
    }
}

fn row(line: &ImageLine) -> Vec<String> {
    let ImageLine { image, disk, bytes, generation, newest, running } = line;
    let generation = match generation {
        Some(generation) if generation == newest => generation.to_string(),
        Some(generation) => format!("{generation} of {newest}"),
        None => "unknown".to_owned(),
    };
    let unknown = || "-".to_owned();
    let (template, warm, machines) = match running {
        None => (unknown(), unknown(), unknown()),
        Some(Running { template, warm, warm_wanted, machines }) => {
            let warm = if *warm_wanted == 0 { unknown() } else { format!("{warm} of {warm_wanted}") };
            (word(template).to_owned(), warm, machines.to_string())
        }
    };
    let size = bytes.map_or_else(|| "missing".to_owned(), megabytes);
    vec![image.clone(), generation, template, warm, machines, size, Printable(disk).to_string()]
}

fn word(template: &TemplateState) -> &'static str {
    match template {
        TemplateState::Off => "-",
        TemplateState::Ready(_) => "ready",
        TemplateState::Waiting => "waiting",
        TemplateState::Building { .. } => "being made",
        TemplateState::Failed { .. } => "failed",
        TemplateState::LeftAlone { .. } => "left alone",
        TemplateState::Unknown { .. } => "unknown",
    }
}

impl fmt::Display for Garbage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Garbage { dry_run, removed, failed, kept } = self;
        let gone = if *dry_run { "would remove" } else { "removed" };
        let lines = [(gone, removed), ("could not remove", failed), ("kept", kept)];
        let rows = lines.into_iter().flat_map(|(verb, lines)| lines.iter().map(move |line| (verb, line)));
        let rows = rows.map(|(verb, GarbageLine { what, bytes, why, .. })| {
            vec![verb.to_owned(), what.clone(), megabytes(*bytes), Printable(why).to_string()]
        });
        write_table(f, rows.collect())?;
        let total = megabytes(removed.iter().map(|line| line.bytes).sum());
        match removed.len() {
            0 => writeln!(f, "nothing to remove"),
            1 => writeln!(f, "{gone} 1 thing, {total}"),
            count => writeln!(f, "{gone} {count} things, {total}"),
        }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}

/// Writes rows with their columns under each other. The last one may be of any length.
fn write_table(f: &mut fmt::Formatter<'_>, rows: Vec<Vec<String>>) -> fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    rows.iter().try_for_each(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_a_table() {
        let line = |image: &str, bytes, generation, newest, running| ImageLine {
            image: image.to_owned(),
            disk: format!("/i/{image}.qcow2"),
            bytes,
            generation,
            newest,
            running,
        };
        let running = |template, warm, warm_wanted, machines| Some(Running { template, warm, warm_wanted, machines });
        let lines = [
            line("debian-12", Some(503_000_001), Some(3), 3, running(TemplateState::Waiting, 1, 2, 12)),
            line("old", None, Some(1), 4, running(TemplateState::Off, 0, 0, 0)),
            line("strange", Some(1), None, 2, None),
        ];
        assert_eq!(
            ImageTable(&lines).to_string(),
            "IMAGE      GENERATION  TEMPLATE  WARM    MACHINES  SIZE     DISK\n\
             debian-12  3           waiting   1 of 2  12        504 MB   /i/debian-12.qcow2\n\
             old        1 of 4      -         -       0         missing  /i/old.qcow2\n\
             strange    unknown     -         -       -         1 MB     /i/strange.qcow2\n"
        );
    }

    #[test]
    fn what_goes_is_a_line_each_and_a_sum() {
        let line = |what: &str, bytes, why: &str| GarbageLine {
            what: what.to_owned(),
            path: "/s/x".to_owned(),
            bytes,
            why: why.to_owned(),
        };
        let check = |dry_run, removed: &[GarbageLine], kept: &[GarbageLine], expected: &str| {
            let garbage = Garbage { dry_run, removed: removed.to_vec(), failed: Vec::new(), kept: kept.to_vec() };
            assert_eq!(garbage.to_string(), expected);
        };
        check(false, &[], &[], "nothing to remove\n");
        check(
            true,
            &[
                line("generation 2 of image 'old'", 300_000_000, "no image 'old'"),
                line("host key of image 'old'", 100, "x"),
            ],
            &[line("disk 'default' of image 'old'", 5_000_000, "somebody's")],
            "would remove  generation 2 of image 'old'    300 MB  no image 'old'\n\
             would remove  host key of image 'old'        1 MB    x\n\
             kept          disk 'default' of image 'old'  5 MB    somebody's\n\
             would remove 2 things, 301 MB\n",
        );
        check(false, &[line("a", 1, "b")], &[], "removed  a  1 MB  b\nremoved 1 thing, 1 MB\n");
    }
}
