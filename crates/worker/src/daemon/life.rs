//! Whether the worker takes builds, finishes those it has, or ends. No IO and no clock: the daemon does what is decided here.
//!
//! ```text
//!           pause, toggle
//!         ───────────────▶
//! Running                  Paused ──┐
//!    │    ◀───────────────          │
//!    │      resume, toggle          │
//!    ├──────────────◀───────────────┘
//!    │ drain
//!    ▼            no build runs, stop
//! Draining ──────────────────────────▶ Stopping ──stop──▶ ends at once
//!                                          ▲
//!         stop, from any of the others ────┘
//! ```
//!
//! Never backwards: a worker that drains does not take builds again, and can't be paused. The builds it waits for may need
//! another machine, and would keep it from ending. For the same reason a worker that is paused is so no more once it drains.

/// What the worker does with builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It serves them.
    Running,
    /// It serves them, but gives them no more machines.
    Paused,
    /// It serves those that it has, then ends.
    Draining,
    /// It ends.
    Stopping,
}

/// What it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// To end, by a person or the system.
    Stop,
    /// To end, by the master.
    Shutdown,
    /// To end once the builds that it has are over.
    Drain,
    /// That no build runs, or that there is no line to the master, over which one might.
    Idle,
    /// To take over a new configuration.
    Reload,
    /// To pause, or to go on.
    TogglePause,
    /// To pause.
    Pause,
    /// To go on.
    Resume,
}

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing: that is how it is already.
    Already,
    /// Nothing: that would be a step backwards.
    TooLate,
    /// No machine is to be given to a build until further notice.
    Pause,
    /// Those that wait may have their machines.
    Resume,
    /// No build is to begin, and no pause to keep those that have from ending.
    Drain,
    /// The configuration is to be read again.
    Reload,
    /// What runs is to be given up, in order.
    Stop,
    /// It is to be left as it is.
    ExitAtOnce,
}

impl Life {
    /// Takes an input and says what there is to do.
    pub(super) fn on(&mut self, input: Input) -> Action {
        let (next, action) = match (*self, input) {
            (Life::Stopping, Input::Stop) => (Life::Stopping, Action::ExitAtOnce),
            (Life::Stopping, Input::Shutdown | Input::Idle) => (Life::Stopping, Action::Already),
            (Life::Stopping, _) => (Life::Stopping, Action::TooLate),
            (_, Input::Stop | Input::Shutdown) | (Life::Draining, Input::Idle) => (Life::Stopping, Action::Stop),
            (same, Input::Idle) => (same, Action::Already),
            (same, Input::Reload) => (same, Action::Reload),
            (Life::Draining, Input::Drain) => (Life::Draining, Action::Already),
            (Life::Running | Life::Paused, Input::Drain) => (Life::Draining, Action::Drain),
            (Life::Draining, Input::TogglePause | Input::Pause | Input::Resume) => (Life::Draining, Action::TooLate),
            (Life::Running, Input::TogglePause | Input::Pause) => (Life::Paused, Action::Pause),
            (Life::Paused, Input::TogglePause | Input::Resume) => (Life::Running, Action::Resume),
            (Life::Running, Input::Resume) => (Life::Running, Action::Already),
            (Life::Paused, Input::Pause) => (Life::Paused, Action::Already),
        };
        *self = next;
        action
    }

    /// What the master is told of it, as `vm_state`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Life::Running => "running",
            Life::Paused => "paused",
            Life::Draining => "draining",
            Life::Stopping => "stopping",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STATES: [Life; 4] = [Life::Running, Life::Paused, Life::Draining, Life::Stopping];

    const INPUTS: [Input; 8] = [
        Input::Stop,
        Input::Shutdown,
        Input::Drain,
        Input::Idle,
        Input::Reload,
        Input::TogglePause,
        Input::Pause,
        Input::Resume,
    ];

    /// Where inputs lead to from a state, and what there is to do for each.
    fn after<const N: usize>(mut life: Life, inputs: [Input; N]) -> (Life, [Action; N]) {
        let actions = inputs.map(|input| life.on(input));
        (life, actions)
    }

    #[test]
    fn each_input_has_its_effect_in_each_state() {
        use Action::*;
        use Life::{Draining, Paused, Running, Stopping};
        let table = [
            (Input::Stop, [(Stopping, Stop), (Stopping, Stop), (Stopping, Stop), (Stopping, ExitAtOnce)]),
            (Input::Shutdown, [(Stopping, Stop), (Stopping, Stop), (Stopping, Stop), (Stopping, Already)]),
            (Input::Drain, [(Draining, Drain), (Draining, Drain), (Draining, Already), (Stopping, TooLate)]),
            (Input::Idle, [(Running, Already), (Paused, Already), (Stopping, Stop), (Stopping, Already)]),
            (Input::Reload, [(Running, Reload), (Paused, Reload), (Draining, Reload), (Stopping, TooLate)]),
            (Input::TogglePause, [(Paused, Pause), (Running, Resume), (Draining, TooLate), (Stopping, TooLate)]),
            (Input::Pause, [(Paused, Pause), (Paused, Already), (Draining, TooLate), (Stopping, TooLate)]),
            (Input::Resume, [(Running, Already), (Running, Resume), (Draining, TooLate), (Stopping, TooLate)]),
        ];
        assert_eq!(table.map(|(input, _)| input), INPUTS);
        for (input, expected) in table {
            let effects = STATES.map(|state| {
                let (next, [action]) = after(state, [input]);
                (next, action)
            });
            assert_eq!(effects, expected, "{input:?}");
        }
    }

    /// SIGTERM or SIGINT, SIGUSR1, SIGUSR2 and SIGHUP: each after each, from each state.
    #[test]
    fn each_signal_after_each_other_has_its_effect_in_each_state() {
        use Action::*;
        use Life::{Draining, Paused, Running, Stopping};
        let check = |signals: [Input; 2], expected: [(Life, [Action; 2]); 4]| {
            assert_eq!(STATES.map(|state| after(state, signals)), expected, "{signals:?}");
        };
        let (term, usr1, usr2, hup) = (Input::Stop, Input::Drain, Input::TogglePause, Input::Reload);
        let stopping = |first, second| (Stopping, [first, second]);
        let draining = |first, second| (Draining, [first, second]);
        let paused = |first, second| (Paused, [first, second]);
        let running = |first, second| (Running, [first, second]);
        let at_once = stopping(ExitAtOnce, ExitAtOnce);

        let twice = stopping(Stop, ExitAtOnce);
        check([term, term], [twice, twice, twice, at_once]);
        let late = stopping(Stop, TooLate);
        check([term, usr1], [late, late, late, stopping(ExitAtOnce, TooLate)]);
        check([term, usr2], [late, late, late, stopping(ExitAtOnce, TooLate)]);
        check([term, hup], [late, late, late, stopping(ExitAtOnce, TooLate)]);

        let drained = stopping(Drain, Stop);
        check([usr1, term], [drained, drained, stopping(Already, Stop), stopping(TooLate, ExitAtOnce)]);
        let again = draining(Drain, Already);
        check([usr1, usr1], [again, again, draining(Already, Already), stopping(TooLate, TooLate)]);
        let not_paused = draining(Drain, TooLate);
        check([usr1, usr2], [not_paused, not_paused, draining(Already, TooLate), stopping(TooLate, TooLate)]);
        let reloaded = draining(Drain, Reload);
        check([usr1, hup], [reloaded, reloaded, draining(Already, Reload), stopping(TooLate, TooLate)]);

        let late_term = stopping(TooLate, ExitAtOnce);
        let never = stopping(TooLate, TooLate);
        check([usr2, term], [stopping(Pause, Stop), stopping(Resume, Stop), stopping(TooLate, Stop), late_term]);
        check([usr2, usr1], [draining(Pause, Drain), draining(Resume, Drain), draining(TooLate, Already), never]);
        check([usr2, usr2], [running(Pause, Resume), paused(Resume, Pause), draining(TooLate, TooLate), never]);
        check([usr2, hup], [paused(Pause, Reload), running(Resume, Reload), draining(TooLate, Reload), never]);

        let stopped = stopping(Reload, Stop);
        check([hup, term], [stopped, stopped, stopped, late_term]);
        check([hup, usr1], [draining(Reload, Drain), draining(Reload, Drain), draining(Reload, Already), never]);
        check([hup, usr2], [paused(Reload, Pause), running(Reload, Resume), draining(Reload, TooLate), never]);
        check([hup, hup], [running(Reload, Reload), paused(Reload, Reload), draining(Reload, Reload), never]);
    }

    fn stage(life: Life) -> u8 {
        match life {
            Life::Running | Life::Paused => 0,
            Life::Draining => 1,
            Life::Stopping => 2,
        }
    }

    proptest! {
        #[test]
        fn never_backwards(inputs in prop::collection::vec(prop::sample::select(INPUTS.to_vec()), 0..50)) {
            let mut life = Life::Running;
            for input in inputs {
                let before = life;
                let action = life.on(input);
                prop_assert!(stage(life) >= stage(before), "{before:?} {input:?} {life:?}");
                // The daemon acts on every change, and only on what can still be done.
                let still = matches!(action, Action::Already | Action::TooLate | Action::Reload | Action::ExitAtOnce);
                prop_assert_eq!(life == before, still, "{:?} {:?} {:?}", before, input, action);
            }
        }
    }
}
