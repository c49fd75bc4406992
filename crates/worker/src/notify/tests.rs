use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::*;

const PERIOD: Duration = Duration::from_secs(10);

/// A notifier and what it said, a text for each message.
struct Scene {
    telling: Telling,
    said: Arc<Mutex<Vec<String>>>,
    census: watch::Sender<Census>,
    /// Whether the tasks that are asked for a sign of life give one.
    healthy: Arc<AtomicBool>,
}

impl Scene {
    fn new() -> Self {
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let say = move |states: &[NotifyState<'_>]| {
            let message: Vec<_> = states.iter().map(ToString::to_string).collect();
            heard.lock().unwrap_or_else(PoisonError::into_inner).push(message.join(" "));
        };
        let healthy = Arc::new(AtomicBool::new(true));
        let health = Arc::clone(&healthy);
        let pulse: Pulse = Box::new(move || {
            let health = Arc::clone(&health);
            Box::pin(async move {
                if !health.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                true
            })
        });
        let (census, changes) = watch::channel(Census::default());
        let telling = Telling::new("pb://m", changes, Some(Watchdog::new(PERIOD, pulse)), say);
        Scene { telling, said, census, healthy }
    }

    fn turn(&mut self, commands: usize) {
        self.telling.turn(Standing { state: "running", commands, refused: 0 });
    }

    /// Takes turns as the main loop does, for some time.
    async fn run(&mut self, state: &'static str, time: Duration) {
        let end = Instant::now() + time;
        while tokio::time::timeout_at(end, self.telling.due()).await.is_ok() {
            self.telling.turn(Standing { state, commands: 0, refused: 0 });
        }
    }

    /// What was said since this was asked the last time.
    fn said(&self) -> Vec<String> {
        std::mem::take(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[tokio::test(start_paused = true)]
async fn first_turn_says_that_the_worker_is_ready() {
    let mut scene = Scene::new();
    scene.turn(0);
    scene.turn(0);
    assert_eq!(scene.said(), ["READY=1 STATUS=connecting to pb://m"]);
}

#[tokio::test(start_paused = true)]
async fn end_of_a_reload_says_so_again() {
    let mut notifier = Notifier(None);
    notifier.reloaded();
    let mut scene = Scene::new();
    scene.turn(0);
    scene.said();
    let said = Arc::clone(&scene.said);
    let mut notifier = Notifier(Some(scene.telling));
    notifier.reloading();
    notifier.turn(Standing { state: "running", commands: 0, refused: 0 });
    notifier.reloaded();
    notifier.turn(Standing { state: "running", commands: 0, refused: 0 });
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    let [reloading, ready] = &said[..] else { panic!("{said:?}") };
    assert!(reloading.starts_with("RELOADING=1 MONOTONIC_USEC="), "{reloading}");
    assert_eq!(ready, "READY=1");
}

#[tokio::test(start_paused = true)]
async fn status_follows_what_changes_but_not_in_a_hurry() {
    let mut scene = Scene::new();
    scene.telling.watchdog = None;
    scene.turn(0);
    scene.said();
    for commands in 1..100 {
        scene.turn(commands);
    }
    assert_eq!(scene.said(), Vec::<String>::new());
    scene.telling.due().await;
    scene.turn(99);
    assert_eq!(scene.said(), ["STATUS=connecting to pb://m; 99 commands run"]);
    scene.census.send_modify(|census| *census = Census { slots: 2, free: 1, ..Census::default() });
    scene.telling.due().await;
    tokio::time::advance(STATUS_PAUSE).await;
    scene.turn(0);
    assert_eq!(scene.said(), ["STATUS=connecting to pb://m; 1 of 2 slots in use"]);
}

#[tokio::test(start_paused = true)]
async fn signs_of_life_come_as_long_as_all_answer() {
    let mut scene = Scene::new();
    scene.turn(0);
    scene.said();
    scene.run("running", PERIOD * 5 + PERIOD / 2).await;
    assert_eq!(scene.said(), ["WATCHDOG=1"; 6]);
    scene.healthy.store(false, Ordering::Relaxed);
    scene.run("running", PERIOD * 5).await;
    assert!(scene.said().len() <= 1, "a task that does not answer is alive");
    // The main loop goes on, for which nobody vouches.
    scene.turn(7);
    assert_eq!(scene.said(), ["STATUS=connecting to pb://m; 7 commands run"]);
}

#[tokio::test(start_paused = true)]
async fn main_loop_that_takes_no_turn_is_not_alive() {
    let mut scene = Scene::new();
    scene.turn(0);
    scene.said();
    tokio::time::advance(PERIOD * 10).await;
    scene.telling.due().await;
    assert_eq!(scene.said(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn drain_is_given_time() {
    let mut scene = Scene::new();
    scene.telling.watchdog = None;
    scene.turn(0);
    scene.telling.turn(Standing { state: "draining", commands: 0, refused: 0 });
    scene.said();
    scene.run("draining", DRAIN_PAUSE * 3 - DRAIN_PAUSE / 2).await;
    let extensions = scene.said().into_iter().filter(|said| said == "EXTEND_TIMEOUT_USEC=60000000").count();
    assert_eq!(extensions, 2);
}
