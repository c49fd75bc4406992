//! Decides what goes. No IO.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::scan::Seen;
use super::{Kind, Piece, World};

/// What goes and what stays of what nothing in the configuration uses, each with the reason.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub go: Vec<(Piece, String)>,
    pub stay: Vec<(Piece, String)>,
}

/// Decides; `disks` is whether persistent disks may go.
pub(super) fn plan(seen: &Seen, world: &World, disks: bool) -> Plan {
    let mut plan = Plan::default();
    let mut candidates = Vec::new();
    for piece in &seen.pieces {
        match verdict(piece, world, disks) {
            Verdict::Used => {}
            Verdict::Stays(why) => plan.stay.push((piece.clone(), why)),
            Verdict::MayGo(why) => candidates.push((piece.clone(), why)),
        }
    }
    // What stands on a piece has to go before it can: until nothing changes any more, what something stands on that stays
    // is taken out.
    let mut going: BTreeSet<PathBuf> = candidates.iter().map(|(piece, _)| piece.path.clone()).collect();
    loop {
        let is_gone = |file: &Path| file.ancestors().any(|above| going.contains(above));
        let held = candidates.iter().find_map(|(piece, _)| {
            let stands = seen.stands.iter().find(|(above, below)| below.starts_with(&piece.path) && !is_gone(above));
            going.contains(&piece.path).then_some((piece.clone(), stands?.0.clone()))
        });
        let Some((piece, above)) = held else { break };
        going.remove(&piece.path);
        plan.stay.push((piece, format!("{} stands on it", above.display())));
    }
    plan.go = candidates.into_iter().filter(|(piece, _)| going.contains(&piece.path)).collect();
    plan
}

enum Verdict {
    /// It is in use, or may be soon.
    Used,
    Stays(String),
    /// Unless something stands on it.
    MayGo(String),
}

fn verdict(piece: &Piece, world: &World, disks: bool) -> Verdict {
    let image = &piece.image;
    let configured = world.images.get(image);
    let gone = || format!("the configuration has no image '{image}'");
    if world.busy.contains(&piece.path) {
        return match configured {
            None if piece.kind != Kind::Unfinished => Verdict::Stays(format!("{}, and it is in use", gone())),
            _ => Verdict::Used,
        };
    }
    match (&piece.kind, configured) {
        (Kind::Unfinished, _) => Verdict::MayGo("it was being made, or removed, when a worker ended".to_owned()),
        (Kind::Template(_), Some(false)) => Verdict::MayGo("the image has no template any more".to_owned()),
        (Kind::Template(_), Some(true)) => match world.useless.get(&piece.path) {
            Some(why) => Verdict::MayGo(why.clone()),
            None => Verdict::Used,
        },
        (Kind::Generation(_) | Kind::HostKey | Kind::Disk(_), Some(_)) => Verdict::Used,
        (Kind::Disk(_), None) if !disks => {
            Verdict::Stays(format!("{}; it may have somebody's data, and goes with --disks only", gone()))
        }
        (Kind::Generation(_) | Kind::Template(_) | Kind::Disk(_) | Kind::HostKey, None) => Verdict::MayGo(gone()),
    }
}

#[cfg(test)]
mod tests {
    use protocol::command::Name;

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("a name")
    }

    fn piece(kind: Kind, image: &str, path: &str) -> Piece {
        Piece { kind, image: name(image), path: path.into(), bytes: 1 }
    }

    fn pieces() -> Vec<Piece> {
        vec![
            piece(Kind::Generation(2), "here", "/s/generations/here/2"),
            piece(Kind::Generation(2), "gone", "/s/generations/gone/2"),
            piece(Kind::Generation(3), "gone", "/s/generations/gone/3"),
            piece(Kind::Unfinished, "here", "/s/generations/here/new-0"),
            piece(Kind::Template("aa".to_owned()), "here", "/s/templates/here/aa"),
            piece(Kind::Template("bb".to_owned()), "here", "/s/templates/here/bb"),
            piece(Kind::Template("cc".to_owned()), "plain", "/s/templates/plain/cc"),
            piece(Kind::Template("dd".to_owned()), "gone", "/s/templates/gone/dd"),
            piece(Kind::Disk(name("default")), "here", "/s/disks/here/default.qcow2"),
            piece(Kind::Disk(name("default")), "gone", "/s/disks/gone/default.qcow2"),
            piece(Kind::HostKey, "here", "/s/host_keys/here.pub"),
            piece(Kind::HostKey, "gone", "/s/host_keys/gone.pub"),
        ]
    }

    /// What goes and what stays, as paths below the state directory.
    #[track_caller]
    fn check(stands: &[(&str, &str)], busy: &[&str], disks: bool, go: &[&str], stay: &[&str]) {
        let path = |path: &&str| Path::new("/s").join(path);
        let seen =
            Seen { pieces: pieces(), stands: stands.iter().map(|(above, below)| (path(above), path(below))).collect() };
        let world = World {
            images: [(name("here"), true), (name("plain"), false)].into(),
            busy: busy.iter().map(path).collect(),
            useless: [(path(&"templates/here/bb"), "changed since".to_owned())].into(),
        };
        let plan = plan(&seen, &world, disks);
        let paths =
            |list: &[(Piece, String)]| list.iter().map(|(piece, _)| piece.path.clone()).collect::<BTreeSet<_>>();
        assert_eq!(paths(&plan.go), go.iter().map(path).collect());
        assert_eq!(paths(&plan.stay), stay.iter().map(path).collect());
    }

    const NEW: &str = "generations/here/new-0";
    const DISK: &str = "disks/gone/default.qcow2";
    const KEY: &str = "host_keys/gone.pub";
    const SECOND: &str = "generations/gone/2";
    const THIRD: &str = "generations/gone/3";
    const BAD: &str = "templates/here/bb";
    const OFF: &str = "templates/plain/cc";
    const LOST: &str = "templates/gone/dd";

    #[test]
    fn what_the_configuration_has_not_goes_and_somebodys_data_only_if_told_to() {
        check(&[], &[], false, &[SECOND, THIRD, NEW, KEY, BAD, LOST, OFF], &[DISK]);
        check(&[], &[], true, &[DISK, SECOND, THIRD, NEW, KEY, BAD, LOST, OFF], &[]);
    }

    #[test]
    fn what_something_stands_on_stays() {
        let on_second = (DISK, "generations/gone/2/disk.qcow2");
        check(&[on_second], &[], false, &[THIRD, NEW, KEY, BAD, LOST, OFF], &[DISK, SECOND]);
        // With the disk, what it alone stood on goes, too.
        check(&[on_second], &[], true, &[DISK, SECOND, THIRD, NEW, KEY, BAD, LOST, OFF], &[]);
        // A clone in a slot stands on a template, and that on a generation.
        let clone = ("slots/0/overlay.qcow2", "templates/gone/dd/disk.qcow2");
        let template = ("templates/gone/dd/disk.qcow2", "generations/gone/3/disk.qcow2");
        check(&[clone, template], &[], true, &[DISK, SECOND, NEW, KEY, BAD, OFF], &[THIRD, LOST]);
        check(&[template], &[], true, &[DISK, SECOND, THIRD, NEW, KEY, BAD, LOST, OFF], &[]);
        // So does one of an image that is there, on a template that is of no use any more.
        let clone = ("slots/0/overlay.qcow2", "templates/here/bb/disk.qcow2");
        check(&[clone], &[], true, &[DISK, SECOND, THIRD, NEW, KEY, LOST, OFF], &[BAD]);
        // A template's own disks lie over each other.
        let own = ("templates/gone/dd/overlay.qcow2", "templates/gone/dd/disk.qcow2");
        check(&[own], &[], true, &[DISK, SECOND, THIRD, NEW, KEY, BAD, LOST, OFF], &[]);
    }

    #[test]
    fn what_is_being_made_or_used_stays() {
        check(&[], &[NEW, DISK], true, &[SECOND, THIRD, KEY, BAD, LOST, OFF], &[DISK]);
    }
}
