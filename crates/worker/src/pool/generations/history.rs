//! What is known of one image's generations, and what follows from it. No IO.

use std::collections::{BTreeMap, BTreeSet};

/// The generation that is the image's disk as the configuration has it.
pub(crate) const FIRST: u32 = 1;

/// The generations of an image.
#[derive(Debug)]
pub(super) struct History<M> {
    saved: BTreeMap<u32, Saved<M>>,
    current: Current,
}

/// A generation that was saved, 2 and up.
#[derive(Debug)]
struct Saved<M> {
    /// What its manifest says, or what is wrong with it.
    manifest: Result<M, String>,
    /// How many machines stand on it.
    users: usize,
    /// How many templates do.
    templates: usize,
}

/// Which generation machines start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Current {
    Newest,
    /// An older one, because somebody has gone back to it.
    Chosen(u32),
    /// What was chosen can't be read.
    Unknown {
        why: String,
    },
}

impl<M> History<M> {
    pub(super) fn new(saved: impl IntoIterator<Item = (u32, Result<M, String>)>, current: Current) -> Self {
        let saved = saved.into_iter().map(|(number, manifest)| (number, Saved { manifest, users: 0, templates: 0 }));
        History { saved: saved.collect(), current }
    }

    /// Gives up what another history of the same image has not, and goes by what was chosen there.
    pub(super) fn agree_with(&mut self, other: &History<M>) {
        self.saved.retain(|number, _| other.saved.contains_key(number));
        self.current = other.current.clone();
    }

    /// Those that something stands on.
    pub(super) fn in_use(&self) -> Vec<u32> {
        let used = |(_, saved): &(&u32, &Saved<M>)| saved.users > 0 || saved.templates > 0;
        self.saved.iter().filter(used).map(|(number, _)| *number).collect()
    }

    /// All of them, oldest first; without a manifest the first, which has none.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, Option<&Result<M, String>>, usize)> {
        let saved = self.saved.iter().map(|(number, saved)| (*number, Some(&saved.manifest), saved.users));
        std::iter::once((FIRST, None, 0)).chain(saved)
    }

    /// The one that machines start from.
    pub(super) fn current(&self) -> Result<u32, String> {
        match &self.current {
            Current::Newest => Ok(self.newest()),
            Current::Chosen(number) => Ok(*number),
            Current::Unknown { why } => Err(why.clone()),
        }
    }

    /// What somebody chose to be the current one.
    pub(super) fn chosen(&self) -> &Current {
        &self.current
    }

    /// What a generation's manifest says; none for the first.
    pub(super) fn manifest(&self, number: u32) -> Result<Option<&M>, String> {
        if number == FIRST {
            return Ok(None);
        }
        let saved = self.saved.get(&number).ok_or_else(|| "there is none of that number".to_owned())?;
        saved.manifest.as_ref().map(Some).map_err(|why| format!("it is damaged: {why}"))
    }

    /// The number that the next one gets.
    pub(super) fn next(&self) -> u32 {
        self.newest().saturating_add(1)
    }

    fn newest(&self) -> u32 {
        self.saved.last_key_value().map_or(FIRST, |(number, _)| *number)
    }

    /// Adds what was saved by a machine that stood on `from`, and returns whether it is the current one. It is not if
    /// somebody has gone back to an older one than the machine stood on: what they went back from is in it.
    pub(super) fn add(&mut self, number: u32, manifest: M, from: Option<u32>) -> bool {
        self.saved.insert(number, Saved { manifest: Ok(manifest), users: 0, templates: 0 });
        let current = match (&self.current, from) {
            (Current::Newest, _) => true,
            (Current::Chosen(chosen), Some(from)) => from <= *chosen,
            (Current::Chosen(_), None) => true,
            (Current::Unknown { .. }, _) => false,
        };
        if current {
            self.current = Current::Newest;
        }
        current
    }

    /// Which one a rollback to this one, or else to the one before the current one, leads to.
    pub(super) fn target(&self, wanted: Option<u32>) -> Result<(u32, Current), String> {
        let number = match wanted {
            Some(number) => number,
            None => {
                let current = self.current().map_err(|why| format!("{why}; name the generation"))?;
                let earlier = self.saved.range(..current).rev().find(|(_, saved)| saved.manifest.is_ok());
                match earlier {
                    Some((number, _)) => *number,
                    None if current == FIRST => {
                        return Err(format!("generation {FIRST} is the current one, and the first"));
                    }
                    None => FIRST,
                }
            }
        };
        self.manifest(number).map_err(|why| format!("generation {number}: {why}"))?;
        Ok((number, if number == self.newest() { Current::Newest } else { Current::Chosen(number) }))
    }

    pub(super) fn set_current(&mut self, current: Current) {
        self.current = current;
    }

    /// Notes one more or one less machine that stands on a generation.
    pub(super) fn count(&mut self, number: u32, change: fn(usize) -> usize) {
        if let Some(saved) = self.saved.get_mut(&number) {
            saved.users = change(saved.users);
        }
    }

    /// The same for a template.
    pub(super) fn count_templates(&mut self, number: u32, change: fn(usize) -> usize) {
        if let Some(saved) = self.saved.get_mut(&number) {
            saved.templates = change(saved.templates);
        }
    }

    /// Those that need not be kept: older than the newest `keep`, not the current one, and nothing stands on them.
    pub(super) fn superfluous(&self, keep: usize, disks_stand_on: &BTreeSet<u32>) -> Vec<u32> {
        let Ok(current) = self.current() else { return Vec::new() };
        let older = self.saved.iter().rev().skip(keep);
        let unused = older.filter(|(number, saved)| {
            let idle = saved.users == 0 && saved.templates == 0 && !disks_stand_on.contains(number);
            **number != current && idle && saved.manifest.is_ok()
        });
        unused.map(|(number, _)| *number).collect()
    }

    pub(super) fn remove(&mut self, number: u32) {
        self.saved.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image with these saved generations, those of which the number is negative damaged.
    fn history(saved: &[i64], current: Current) -> History<()> {
        let saved = saved.iter().map(|number| {
            let manifest = if *number < 0 { Err("no disk".to_owned()) } else { Ok(()) };
            (u32::try_from(number.abs()).expect("it is small"), manifest)
        });
        History::new(saved, current)
    }

    fn unknown() -> Current {
        Current::Unknown { why: "nonsense".to_owned() }
    }

    #[test]
    fn machines_start_from_the_newest_unless_another_was_chosen() {
        let check = |saved: &[i64], current: Current, expected: (Result<u32, String>, u32)| {
            let history = history(saved, current);
            assert_eq!((history.current(), history.next()), expected, "{saved:?}");
        };
        check(&[], Current::Newest, (Ok(1), 2));
        check(&[2, 3], Current::Newest, (Ok(3), 4));
        check(&[4, 9], Current::Newest, (Ok(9), 10));
        check(&[2, 3], Current::Chosen(2), (Ok(2), 4));
        check(&[2, 3], Current::Chosen(1), (Ok(1), 4));
        // A damaged one is not passed over in silence.
        check(&[2, -3], Current::Newest, (Ok(3), 4));
        check(&[2, 3], unknown(), (Err("nonsense".to_owned()), 4));
    }

    #[test]
    fn what_is_saved_is_current_unless_it_is_of_what_was_gone_back_from() {
        let check = |current: Current, from: Option<u32>, is_current: bool, then: u32| {
            let mut history = history(&[2, 3], current.clone());
            let number = history.next();
            assert_eq!(history.add(number, (), from), is_current, "{current:?} {from:?}");
            assert_eq!((number, history.current()), (4, Ok(then)), "{current:?} {from:?}");
        };
        check(Current::Newest, Some(3), true, 4);
        check(Current::Newest, Some(1), true, 4);
        check(Current::Chosen(2), Some(2), true, 4);
        check(Current::Chosen(2), Some(1), true, 4);
        check(Current::Chosen(2), Some(3), false, 2);
        // Of another image.
        check(Current::Chosen(2), None, true, 4);
    }

    #[test]
    fn a_rollback_leads_to_an_earlier_one_that_is_whole() {
        let check = |saved: &[i64], current: Current, wanted: Option<u32>, expected: Result<(u32, Current), &str>| {
            let target = history(saved, current.clone()).target(wanted);
            assert_eq!(target, expected.map_err(str::to_owned), "{saved:?} {current:?} {wanted:?}");
        };
        check(&[2, 3], Current::Newest, None, Ok((2, Current::Chosen(2))));
        check(&[2, 3], Current::Chosen(2), None, Ok((1, Current::Chosen(1))));
        check(&[2, -3, 4], Current::Newest, None, Ok((2, Current::Chosen(2))));
        check(&[-2], Current::Newest, None, Ok((1, Current::Chosen(1))));
        check(&[2, 3], Current::Chosen(1), None, Err("generation 1 is the current one, and the first"));
        check(&[], Current::Newest, None, Err("generation 1 is the current one, and the first"));
        check(&[2, 3], Current::Chosen(1), Some(3), Ok((3, Current::Newest)));
        check(&[2, 3], Current::Chosen(1), Some(2), Ok((2, Current::Chosen(2))));
        check(&[2, 3], unknown(), Some(1), Ok((1, Current::Chosen(1))));
        check(&[2, 3], unknown(), None, Err("nonsense; name the generation"));
        check(&[2, 3], Current::Newest, Some(7), Err("generation 7: there is none of that number"));
        check(&[2, -3], Current::Newest, Some(3), Err("generation 3: it is damaged: no disk"));
    }

    #[test]
    fn what_is_current_or_in_use_is_kept_and_of_the_rest_the_newest() {
        let check = |saved: &[i64], current: Current, keep: usize, used: &[u32], disks: &[u32], expected: &[u32]| {
            let mut history = history(saved, current.clone());
            used.iter().for_each(|number| history.count(*number, |users| users + 1));
            let disks = disks.iter().copied().collect();
            assert_eq!(history.superfluous(keep, &disks), expected, "{saved:?} {current:?} {keep} {used:?} {disks:?}");
        };
        check(&[2, 3, 4, 5], Current::Newest, 3, &[], &[], &[2]);
        check(&[2, 3, 4, 5], Current::Newest, 1, &[], &[], &[4, 3, 2]);
        check(&[2, 3, 4, 5], Current::Newest, 1, &[3], &[2], &[4]);
        check(&[2, 3, 4, 5], Current::Chosen(2), 2, &[], &[], &[3]);
        check(&[2, 3, 4, 5], unknown(), 1, &[], &[], &[]);
        check(&[-2, 3, 4, 5], Current::Newest, 1, &[], &[], &[4, 3]);
        check(&[2, 3], Current::Newest, 3, &[], &[], &[]);
    }

    #[test]
    fn what_a_template_stands_on_is_kept() {
        let mut history = history(&[2, 3], Current::Newest);
        history.count_templates(2, |templates| templates + 1);
        assert_eq!(history.superfluous(1, &BTreeSet::new()), Vec::<u32>::new());
        history.count_templates(2, |templates| templates - 1);
        assert_eq!(history.superfluous(1, &BTreeSet::new()), [2]);
    }
}
