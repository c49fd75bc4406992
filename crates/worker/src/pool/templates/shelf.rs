//! What is known of one image's templates, and what follows from it. No IO and no clock.
//!
//! ```text
//! ──look──▶ Build ──begin──▶ Building ──built──▶ Ready ──worked──▶ failures forgotten
//!             ▲                 │                  │
//!          in a while         failed         bad (a clone failed)
//!             └──── failures < 3 ◀────────────────┘
//!                   failures = 3: left alone until the key changes or somebody asks
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::inputs::Key;

/// How many failures in a row of the same key there may be.
const FAILURES: u32 = 3;

/// How long a template that can't be made because the host has no room waits for the next look.
const POSTPONED: Duration = Duration::from_secs(15);

/// The longest pause after a try that the host ended. The first is as long as one for want of room; it doubles, as each try
/// costs a boot.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The templates of an image.
#[derive(Debug)]
pub(super) struct Shelf<T> {
    ready: Option<(Key, Arc<T>)>,
    building: Option<(Key, Instant)>,
    trouble: Option<Trouble>,
    /// How many builds have ended, and how the last one did.
    ended: u64,
    last: Option<Result<(), String>>,
    /// Whether the host had no room the last time, or ended the try.
    short: bool,
    /// How many tries in a row the host has ended.
    hitches: u32,
}

/// What went wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trouble {
    key: Key,
    /// Failures in a row of which it may be the cause.
    failures: u32,
    why: String,
    /// Not tried again before.
    not_before: Instant,
}

/// What there is for a key.
#[derive(Debug)]
pub(super) enum Sight<T> {
    /// One to make clones of.
    Ready(Arc<T>),
    /// None, and one can be made now.
    Absent,
    /// One is being made, since then.
    Building(Instant),
    /// None until then, because of this.
    Later(Instant, String),
    /// None any more, because of this.
    LeftAlone(String),
}

impl<T> Shelf<T> {
    /// One with what an earlier run has left ready.
    pub(super) fn new(ready: Option<(Key, Arc<T>)>) -> Self {
        Shelf { ready, building: None, trouble: None, ended: 0, last: None, short: false, hitches: 0 }
    }

    /// What there is for a key, which is the image's from now on. A template of another key is handed out, not to be used
    /// any more.
    pub(super) fn look(&mut self, key: &Key, now: Instant) -> (Sight<T>, Option<Arc<T>>) {
        let superseded = self.ready.take_if(|(of, _)| of != key).map(|(_, template)| template);
        self.trouble.take_if(|trouble| trouble.key != *key);
        (self.sight(key, now), superseded)
    }

    fn sight(&self, key: &Key, now: Instant) -> Sight<T> {
        if let Some((_, template)) = &self.ready {
            return Sight::Ready(Arc::clone(template));
        }
        match (&self.building, &self.trouble) {
            (Some((of, since)), _) if of == key => Sight::Building(*since),
            (_, Some(trouble)) if trouble.failures >= FAILURES => Sight::LeftAlone(trouble.why.clone()),
            (_, Some(trouble)) if trouble.not_before > now => Sight::Later(trouble.not_before, trouble.why.clone()),
            _ => Sight::Absent,
        }
    }

    /// Notes that one is being made.
    pub(super) fn begin(&mut self, key: Key, now: Instant) {
        self.building = Some((key, now));
    }

    /// Notes that one was made.
    pub(super) fn built(&mut self, key: Key, template: Arc<T>) {
        self.ready = Some((key, template));
        self.host_did_well();
        self.end(Ok(()));
    }

    /// Notes that one could not be made. `jitter` is what the pause before the next is multiplied by.
    pub(super) fn failed(&mut self, key: Key, why: String, now: Instant, jitter: f64) -> Failing {
        self.host_did_well();
        self.end(Err(why.clone()));
        self.trouble(key, why, now, jitter)
    }

    /// Notes that the host had no room to make one, which is no fault of the template's. Returns whether that is news.
    pub(super) fn postponed(&mut self, key: Key, why: String, now: Instant) -> bool {
        self.put_off(key, why, now + POSTPONED)
    }

    /// Notes that the host ended the making of one, which is no fault of the template's either. Returns whether that is news.
    pub(super) fn hampered(&mut self, key: Key, why: String, now: Instant) -> bool {
        let pause = POSTPONED.saturating_mul(2_u32.saturating_pow(self.hitches)).min(LONGEST_PAUSE);
        self.hitches += 1;
        self.put_off(key, why, now + pause)
    }

    fn put_off(&mut self, key: Key, why: String, not_before: Instant) -> bool {
        self.end(Err(why.clone()));
        let failures = self.trouble.take_if(|trouble| trouble.key == key).map_or(0, |trouble| trouble.failures);
        self.trouble = Some(Trouble { key, failures, why, not_before });
        !std::mem::replace(&mut self.short, true)
    }

    fn host_did_well(&mut self) {
        (self.short, self.hitches) = (false, 0);
    }

    /// Notes that making one was given up, because what it depends on has changed or the worker stops.
    pub(super) fn dropped(&mut self) {
        self.end(Err("what it depends on changed meanwhile".to_owned()));
    }

    fn end(&mut self, how: Result<(), String>) {
        self.building = None;
        self.ended += 1;
        self.last = Some(how);
    }

    /// Notes that a clone of one failed: it is not used any more. Nothing if it was replaced already.
    pub(super) fn bad(&mut self, template: &Arc<T>, why: String, now: Instant, jitter: f64) -> Option<Failing> {
        let (key, _) = self.ready.take_if(|(_, ready)| Arc::ptr_eq(ready, template))?;
        Some(self.trouble(key, why, now, jitter))
    }

    fn trouble(&mut self, key: Key, why: String, now: Instant, jitter: f64) -> Failing {
        let earlier = self.trouble.take_if(|trouble| trouble.key == key).map_or(0, |trouble| trouble.failures);
        let failures = earlier + 1;
        let pause = pause(failures).mul_f64(jitter);
        self.trouble = Some(Trouble { key, failures, why, not_before: now + pause });
        if failures >= FAILURES { Failing::LeftAlone(failures) } else { Failing::Again(pause) }
    }

    /// Notes that a clone of one runs: what went wrong before was something else.
    pub(super) fn worked(&mut self, template: &Arc<T>) {
        if self.ready.as_ref().is_some_and(|(_, ready)| Arc::ptr_eq(ready, template)) {
            self.trouble = None;
        }
    }

    /// Has one made even after failures, because somebody asks.
    pub(super) fn forgive(&mut self) {
        self.trouble = None;
    }

    /// Takes the one that clones are made of out, and forgets what went wrong.
    pub(super) fn clear(&mut self) -> Option<Arc<T>> {
        self.trouble = None;
        self.ready.take().map(|(_, template)| template)
    }

    /// The one that clones are made of.
    pub(super) fn ready(&self) -> Option<&Arc<T>> {
        self.ready.as_ref().map(|(_, template)| template)
    }

    /// Whether one is being made.
    pub(super) fn is_building(&self) -> bool {
        self.building.is_some()
    }

    /// How many builds have ended.
    pub(super) fn ended(&self) -> u64 {
        self.ended
    }

    /// How the last build ended.
    pub(super) fn last(&self) -> Option<Result<(), String>> {
        self.last.clone()
    }
}

/// What follows from a failure.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Failing {
    /// Another is made after this.
    Again(Duration),
    /// None is made after so many failures in a row.
    LeftAlone(u32),
}

/// How long to wait after a failure, the last of so many, before jitter.
fn pause(failures: u32) -> Duration {
    Duration::from_secs(2) * 10_u32.saturating_pow(failures.saturating_sub(1).min(3))
}

#[cfg(test)]
mod tests {
    use super::super::inputs::Inputs;
    use super::*;

    fn key(text: &str) -> Key {
        Inputs::for_tests(&[("disk", text)]).key()
    }

    fn seen(shelf: &mut Shelf<&'static str>, of: &str, now: Instant) -> String {
        match shelf.look(&key(of), now).0 {
            Sight::Ready(template) => format!("ready {template}"),
            Sight::Absent => "absent".to_owned(),
            Sight::Building(since) => format!("building for {:?}", now - since),
            Sight::Later(until, why) => format!("in {:?}: {why}", until - now),
            Sight::LeftAlone(why) => format!("left alone: {why}"),
        }
    }

    #[test]
    fn a_template_is_used_for_its_key_only() {
        let now = Instant::now();
        let mut shelf = Shelf::new(Some((key("a"), Arc::new("one"))));
        assert_eq!(seen(&mut shelf, "a", now), "ready one");
        let (_, superseded) = shelf.look(&key("b"), now);
        assert_eq!(superseded.as_deref(), Some(&"one"));
        assert_eq!(seen(&mut shelf, "b", now), "absent");
        shelf.begin(key("b"), now);
        assert_eq!(seen(&mut shelf, "b", now + Duration::from_secs(3)), "building for 3s");
        // It changed again meanwhile.
        assert_eq!(seen(&mut shelf, "c", now), "absent");
        shelf.built(key("b"), Arc::new("two"));
        assert_eq!(seen(&mut shelf, "b", now), "ready two");
        assert_eq!((shelf.ended(), shelf.last()), (1, Some(Ok(()))));
    }

    #[test]
    fn failures_in_a_row_are_tried_again_ever_later_and_then_no_more() {
        let now = Instant::now();
        let mut shelf = Shelf::new(None);
        let fail = |shelf: &mut Shelf<_>, why: &str| {
            shelf.begin(key("a"), now);
            shelf.failed(key("a"), why.to_owned(), now, 1.0)
        };
        assert_eq!(fail(&mut shelf, "first"), Failing::Again(Duration::from_secs(2)));
        assert_eq!(seen(&mut shelf, "a", now), "in 2s: first");
        assert_eq!(seen(&mut shelf, "a", now + Duration::from_secs(2)), "absent");
        assert_eq!(fail(&mut shelf, "second"), Failing::Again(Duration::from_secs(20)));
        assert_eq!(fail(&mut shelf, "third"), Failing::LeftAlone(3));
        assert_eq!(seen(&mut shelf, "a", now + Duration::from_secs(86400)), "left alone: third");
        // Another key is another matter.
        assert_eq!(seen(&mut shelf, "b", now), "absent");
        assert_eq!(fail(&mut shelf, "fourth"), Failing::Again(Duration::from_secs(2)));
        fail(&mut shelf, "fifth");
        fail(&mut shelf, "sixth");
        shelf.forgive();
        assert_eq!(seen(&mut shelf, "a", now), "absent");
    }

    #[test]
    fn clones_that_fail_count_and_one_that_works_makes_good() {
        let now = Instant::now();
        let mut shelf = Shelf::new(None);
        let build = |shelf: &mut Shelf<_>| {
            shelf.begin(key("a"), now);
            let template = Arc::new("one");
            shelf.built(key("a"), Arc::clone(&template));
            template
        };
        let bad = |shelf: &mut Shelf<_>, template| shelf.bad(template, "no answer".to_owned(), now, 1.0);
        let first = build(&mut shelf);
        assert_eq!(bad(&mut shelf, &first), Some(Failing::Again(Duration::from_secs(2))));
        assert_eq!(seen(&mut shelf, "a", now), "in 2s: no answer");
        // Another clone of it, which fails later, says nothing new.
        assert_eq!(bad(&mut shelf, &first), None);
        let second = build(&mut shelf);
        shelf.worked(&first);
        assert_eq!(bad(&mut shelf, &second), Some(Failing::Again(Duration::from_secs(20))));
        let third = build(&mut shelf);
        shelf.worked(&third);
        assert_eq!(bad(&mut shelf, &third), Some(Failing::Again(Duration::from_secs(2))));
    }

    #[test]
    fn want_of_room_is_no_failure() {
        let now = Instant::now();
        let mut shelf: Shelf<&'static str> = Shelf::new(None);
        for news in [true, false, false, false] {
            shelf.begin(key("a"), now);
            assert_eq!(shelf.postponed(key("a"), "no room".to_owned(), now), news);
            assert_eq!(seen(&mut shelf, "a", now), "in 15s: no room");
        }
        assert_eq!(shelf.failed(key("a"), "x".to_owned(), now, 0.5), Failing::Again(Duration::from_secs(1)));
    }

    #[test]
    fn tries_that_the_host_ends_are_no_failures_and_ever_later() {
        let now = Instant::now();
        let mut shelf: Shelf<&'static str> = Shelf::new(None);
        for (seconds, news) in [(15, true), (30, false), (60, false), (120, false), (240, false), (300, false)] {
            shelf.begin(key("a"), now);
            assert_eq!(shelf.hampered(key("a"), "killed".to_owned(), now), news);
            assert_eq!(seen(&mut shelf, "a", now), format!("in {seconds}s: killed"));
        }
        assert_eq!(shelf.failed(key("a"), "x".to_owned(), now, 1.0), Failing::Again(Duration::from_secs(2)));
        assert!(shelf.hampered(key("a"), "killed".to_owned(), now));
        assert_eq!(seen(&mut shelf, "a", now), "in 15s: killed");
    }
}
