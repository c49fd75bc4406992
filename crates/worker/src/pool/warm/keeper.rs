//! The task that keeps machines ready: it makes what is missing, one at a time, and ends what is of no use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use protocol::command::Name;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{Instrument, debug, error_span, info, warn};

use super::load;
use super::plan::{QUIET, View, Why, Wish, plan};
use crate::config::Image;
use crate::core_tasks::End;
use crate::pool::board::Occupant;
use crate::pool::budget::Need;
use crate::pool::clone::NotCloned;
use crate::pool::machine::Shape;
use crate::pool::raised::Raised;
use crate::pool::templates::{Offer, Template};
use crate::pool::{Pool, Progress};

/// How often is looked for what nothing tells of: the load, the host's clock, files that a template was made of.
const LOOK: Duration = Duration::from_secs(10);

/// The pause after a machine that could not be made; it doubles each time, up to the longest.
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Why no machine was made.
enum NotMade {
    /// There is no template, no slot, no memory or no disk for it now.
    NoRoom,
    /// A clone of this one failed.
    Failed(Arc<Template>, String),
}

/// The tries for an image that came to nothing.
#[derive(Debug, Default)]
struct Failures {
    count: u32,
    until: Option<Instant>,
    /// What the last was a clone of: with another one it may go better.
    template: Weak<Template>,
}

impl Failures {
    fn add(&mut self, template: &Arc<Template>) {
        self.template = Arc::downgrade(template);
        let pause = PAUSE.saturating_mul(1 << self.count.min(16)).min(LONGEST_PAUSE);
        self.count += 1;
        self.until = Some(Instant::now() + pause.mul_f64(rand::Rng::random_range(&mut rand::rng(), 0.75..1.25)));
    }

    fn are_over(&self) -> bool {
        self.until.is_none_or(|until| until <= Instant::now())
    }
}

/// Keeps machines ready until the stock is closed; then none is left.
pub(super) async fn keep(pool: Pool) {
    let warm = &pool.0.warm;
    let mut failures: BTreeMap<Name, Failures> = BTreeMap::new();
    // Those that there was no room for, until something changes.
    let mut without_room = BTreeSet::new();
    let mut ends = FuturesUnordered::new();
    let mut starts = warm.starts.changes();
    let mut census = pool.0.slots.changes();
    let mut templates = pool.0.templates.changes();
    let mut promises = pool.0.budget.returned();
    let mut template = warm.template.subscribe();
    let mut setups = pool.0.setup.subscribe();
    loop {
        // What changes from here on is seen below, or the next time.
        let quiet = starts.borrow_and_update().quiet();
        let remade = is_changed(&mut templates);
        if remade {
            failures
                .retain(|_, failures| failures.template.upgrade().is_some_and(|of| pool.0.templates.is_current(&of)));
        }
        let setup = setups.borrow_and_update().clone();
        // Not one of them is to be left out.
        if is_changed(&mut census) | is_changed(&mut promises) | remade {
            without_room.clear();
        }
        let wish = |(image, configured): (&Name, &Arc<Image>)| Wish {
            image: image.clone(),
            count: usize::from(configured.warm),
            possible: pool.0.templates.has(image)
                && !without_room.contains(image)
                && failures.get(image).is_none_or(Failures::are_over),
        };
        let slotless = *template.borrow_and_update();
        let view = View {
            wishes: setup.images.iter().filter(|(_, image)| image.warm > 0).map(wish).collect(),
            lack: pool.0.slots.lack(slotless).await,
            spares: warm.seen(&pool),
            quiet,
            busy: load::load().is_some_and(|load| load > setup.config.warm_max_load),
            max_age: setup.config.warm_max_age,
        };
        let plan = plan(&view);
        for (id, why) in &plan.discard {
            // It may have been handed out meanwhile.
            if let Some(spare) = warm.take_this(*id) {
                pool.end_spare(spare, why).await;
            }
        }
        let making = async {
            match &plan.make {
                Some(image) => (image.clone(), pool.make_spare(image).await),
                None => std::future::pending().await,
            }
        };
        let is_making = plan.make.is_some();
        tokio::select! {
            biased;
            () = warm.stop.cancelled() => break,
            // Builds first: what was begun is dropped, and gives back what it had.
            () = changed(&mut starts, |count| !is_making || count.is_any_unserved()) => {}
            () = changed(&mut template, |need| !is_making || need.is_some()) => {}
            // So is what may not be wanted any more.
            _ = setups.changed() => {}
            (image, made) = making => {
                let failures = failures.entry(image.clone()).or_default();
                match made {
                    Ok(raised) => {
                        *failures = Failures::default();
                        info!(slot = raised.lease.slot().number(), %image, vm_pid = raised.vm.pid(), "warm machine ready");
                        ends.push(warm.put(raised));
                    }
                    Err(NotMade::NoRoom) => {
                        without_room.insert(image);
                    }
                    Err(NotMade::Failed(template, why)) => {
                        failures.add(&template);
                        warn!(%image, "a warm machine could not be made: {}", crate::pool::sentence(&why));
                    }
                }
            }
            Some(end) = ends.next() => if let Some((id, why)) = end {
                warm.note_end(id, why);
            },
            _ = census.changed(), if !is_making => census.mark_changed(),
            _ = templates.changed(), if !is_making => templates.mark_changed(),
            _ = promises.changed(), if !is_making => promises.mark_changed(),
            () = tokio::time::sleep(pause(&view)), if !is_making => without_room.clear(),
        }
    }
    for spare in warm.take_all() {
        pool.end_spare(spare, &Why::Closing).await;
    }
}

/// Whether something has changed since this was asked the last time.
fn is_changed<T>(watch: &mut watch::Receiver<T>) -> bool {
    let changed = watch.has_changed().unwrap_or(false);
    watch.mark_unchanged();
    changed
}

/// Waits until something changes to what is wanted.
async fn changed<T>(watch: &mut watch::Receiver<T>, wanted: impl Fn(&T) -> bool) {
    while watch.changed().await.is_ok() {
        if wanted(&watch.borrow_and_update()) {
            return;
        }
    }
    // Nothing changes any more.
    std::future::pending().await
}

/// How long nothing has to be done if nothing changes that is told.
fn pause(view: &View) -> Duration {
    let ageing = view.spares.iter().map(|spare| view.max_age.saturating_sub(spare.age));
    let quiet = view.quiet.map(|quiet| QUIET.saturating_sub(quiet)).filter(|left| !left.is_zero());
    ageing.chain(quiet).fold(LOOK, Duration::min).max(Duration::from_millis(10))
}

impl Pool {
    /// Begins to keep machines ready in the background.
    pub(in crate::pool) fn keep_warm(&self) {
        let end = End::Cancelled(self.0.warm.stop.clone());
        self.0.tasks.spawn(self.0.core.watch("the task that keeps machines warm", end, keep(self.clone())));
    }

    /// Ends the machines that are kept ready, as hardly a build is going to come.
    pub(crate) fn drain(&self) {
        self.0.warm.close();
    }

    /// Makes one machine of an image, if there is room for it now.
    async fn make_spare(&self, name: &Name) -> Result<Raised, NotMade> {
        let (Ok(image), Some(hypervisor)) = (self.image(name), self.0.hypervisor.get()) else {
            return Err(NotMade::NoRoom);
        };
        let offer = self.0.templates.offer(name, &image, &self.0.generations, hypervisor);
        let Some(Offer::Clone(template, ground)) = offer else { return Err(NotMade::NoRoom) };
        let need = Need::of(&image, Shape::fresh(&image));
        let Some(lease) = self.0.slots.lease_at_once(need).await else { return Err(NotMade::NoRoom) };
        lease.notice().occupied_by(Occupant::of_nobody(name));
        let _making = self.0.warm.making(lease.memory_mib());
        let span = error_span!("spare", image = %name, slot = lease.slot().number());
        let timeout = image.boot_timeout;
        let cloning = self.clone_of(Arc::clone(&template), ground, &image, hypervisor, lease, timeout, &Nobody);
        cloning.instrument(span).await.map_err(|NotCloned { why, .. }| NotMade::Failed(template, why))
    }
}

/// Nobody waits for a machine that is made ready.
struct Nobody;

#[async_trait::async_trait]
impl Progress for Nobody {
    async fn say(&self, line: String) {
        debug!("{line}");
    }

    fn console(&self, _: &std::path::Path) {}
}
