//! Whether a pod's program works.

use std::time::Duration;

use perennial_core::engine::EngineError;
use perennial_core::health::{Answer, Probe};

use super::subject::Subject;
use super::{Checked, Fixture, check, check_refused};

/// Where the fixture's server serves.
pub(super) const PORT: u16 = 8080;
/// More than anything here takes that answers.
const LONG: Duration = Duration::from_secs(20);
/// Tries of what has to start first.
const TRIES: u32 = 200;

async fn answer(subject: &Subject<'_>, id: &str, probe: &Probe, within: Duration) -> Checked<Answer> {
    Ok(subject.engine().container_probe(id, probe, within).await?)
}

pub(super) async fn program_tells_whether_a_pod_works(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    let exec = |command: &[String]| Probe::Exec { command: command.to_vec() };
    let good = answer(&subject, &id, &exec(&fixture.programs.writes), LONG).await?;
    check!(good == Answer::Good, "one that ends with 0 says {good:?}");
    let bad = answer(&subject, &id, &exec(&fixture.programs.fails), LONG).await?;
    check!(
        matches!(&bad, Answer::Bad(why) if why.contains('3') && why.contains("the last words")),
        "one that fails says {bad:?}"
    );
    let absent = answer(&subject, &id, &exec(&fixture.programs.absent), LONG).await?;
    check!(matches!(absent, Answer::Bad(_)), "one that is not there says {absent:?}");
    let late = answer(&subject, &id, &exec(&fixture.programs.hangs), Duration::from_millis(700)).await?;
    check!(matches!(late, Answer::Bad(_)), "one that hangs says {late:?}");
    let gone = answer(&subject, &id, &exec(&fixture.programs.is_gone), LONG).await?;
    check!(gone == Answer::Good, "it is still there: {gone:?}");
    Ok(())
}

pub(super) async fn page_and_port_tell_whether_a_pod_works(fixture: &Fixture) -> Checked {
    let mut subject = Subject::new(fixture).await?;
    subject.pod.spec.command = Some(fixture.serves.clone());
    subject.prepare(1).await?;
    let id = subject.create().await?;
    subject.start(&id).await?;
    let (page, port) = (|path: &str| Probe::Http { port: PORT, path: path.to_owned() }, Probe::Tcp { port: PORT });
    let mut tries = 0;
    loop {
        let now = answer(&subject, &id, &port, LONG).await?;
        if now == Answer::Good {
            break;
        }
        tries += 1;
        check!(tries < TRIES && matches!(now, Answer::Bad(_)), "nothing serves at port {PORT}: {now:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let served = answer(&subject, &id, &page("/motd"), LONG).await?;
    check!(served == Answer::Good, "its page says {served:?}");
    for probe in [Probe::Tcp { port: PORT + 1 }, Probe::Http { port: PORT + 1, path: "/".to_owned() }] {
        let closed = answer(&subject, &id, &probe, LONG).await?;
        check!(matches!(closed, Answer::Bad(_)), "a port at which nothing serves says {closed:?}");
    }
    Ok(())
}

pub(super) async fn container_that_does_not_run_is_not_asked(fixture: &Fixture) -> Checked {
    let (subject, id) = Subject::running(fixture).await?;
    subject.engine().container_stop(&id, 1).await?;
    for probe in [Probe::Tcp { port: PORT }, Probe::Exec { command: fixture.programs.writes.clone() }] {
        let asked = subject.engine().container_probe(&id, &probe, LONG).await;
        check_refused!(asked, EngineError::Conflict { .. }, "asking a container that ended");
    }
    Ok(())
}
