//! Whether a pod's program works: what a test says of it, or else what its command would do.
//!
//! A port takes connections when the pod's command says `-p PORT`, as those of servers do. Programs do what [`programs`](super::programs) says.

use std::time::Duration;

use jiff::Timestamp;
use perennial_core::engine::{EngineError, Program, ProgramEnd};
use perennial_core::health::{Answer, Probe};
use perennial_core::id::PodId;
use perennial_core::progress::Progress;

use super::container::Life;
use super::{SimEngine, conflict};

/// How often it is looked whether somebody who waits for an answer has waited long enough.
const LOOK: Duration = Duration::from_millis(1);

/// What becomes of questions to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ailment {
    /// It does not work, and says so.
    Unhealthy,
    /// It takes the question and says nothing, until the clock says that it is too late.
    Silent,
    /// It cannot be reached from where the server is.
    OutOfReach,
}

impl SimEngine {
    /// Sets what becomes of questions to a pod; `None`: it answers as its command lets it.
    pub fn set_ailment(&self, pod: PodId, ailment: Option<Ailment>) {
        let mut state = self.lock();
        match ailment {
            Some(ailment) => state.ailments.insert(pod, ailment),
            None => state.ailments.remove(&pod),
        };
    }

    /// How many questions were put to a pod.
    #[must_use]
    pub fn probed(&self, pod: PodId) -> usize {
        self.lock().probed.get(&pod).copied().unwrap_or_default()
    }

    pub(super) async fn health_probe(&self, id: &str, probe: &Probe, within: Duration) -> Result<Answer, EngineError> {
        let (pod, ailment, listens) = self
            .call("container_probe", |state, _| {
                let container = state.container(id)?;
                if container.life != Life::Running {
                    return Err(conflict(format!("container {id} does not run, or is frozen")));
                }
                let (pod, listens) = (container.pod, container.listens.clone());
                *state.probed.entry(pod).or_default() += 1;
                Ok((pod, state.ailments.get(&pod).copied(), listens))
            })
            .await?;
        match ailment {
            Some(Ailment::Unhealthy) => return Ok(Answer::Bad("the simulated pod is ill".to_owned())),
            Some(Ailment::Silent) => return Ok(self.wait_in_vain(pod, within).await),
            Some(Ailment::OutOfReach) => return Ok(Answer::Unasked("the simulated node is elsewhere".to_owned())),
            None => {}
        }
        match probe {
            Probe::Http { port, .. } | Probe::Tcp { port } if listens.contains(port) => Ok(Answer::Good),
            Probe::Http { port, .. } | Probe::Tcp { port } => Ok(Answer::Bad(format!("port {port}: refused"))),
            Probe::Exec { command } => {
                let program = Program { mark: "health".to_owned(), command: command.clone(), user: None, within };
                match self.program_run(id, &program, &Progress::default()).await {
                    Ok(ran) => match ran.end {
                        ProgramEnd::Exited(0) => Ok(Answer::Good),
                        ProgramEnd::Exited(code) => Ok(Answer::Bad(format!("status {code}: {}", ran.output))),
                        ProgramEnd::TimedOut(_) => Ok(late(within)),
                        ProgramEnd::Cancelled(_) | ProgramEnd::ContainerEnded => {
                            Err(conflict(format!("container {id} ended while it was asked")))
                        }
                    },
                    Err(EngineError::Rejected { problem }) => Ok(Answer::Bad(problem)),
                    Err(error) => Err(error),
                }
            }
        }
    }

    async fn wait_in_vain(&self, pod: PodId, within: Duration) -> Answer {
        let until = self.shared.clock.now().checked_add(within).unwrap_or(Timestamp::MAX);
        while self.lock().ailments.get(&pod) == Some(&Ailment::Silent) && self.shared.clock.now() < until {
            tokio::time::sleep(LOOK).await;
        }
        late(within)
    }
}

fn late(within: Duration) -> Answer {
    Answer::Bad(format!("no answer in {} s", within.as_secs()))
}
