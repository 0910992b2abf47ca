//! The program: reads the arguments into [`prometheus_postgresql_adapter::config::Config`], starts the log, and runs
//! the app.

use std::io::Write;
use std::process::ExitCode;

use prometheus_postgresql_adapter::command::Command;
use prometheus_postgresql_adapter::config::{self, Config, Parsed};
use prometheus_postgresql_adapter::{app, telemetry};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The exit status of Go's `flag` package for an invalid command line.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match Config::from(std::env::args_os().skip(1), |name| std::env::var(name).ok()) {
        Ok(Parsed::Help(text) | Parsed::Version(text)) => {
            // A reader that closes the pipe early (`| head`) is no failure.
            let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Ok(Parsed::Run(config, warnings)) => run(*config, &warnings),
        Ok(Parsed::Ask(command)) => ask(&command),
        Err(usage) => {
            let _ = writeln!(std::io::stderr(), "{usage}");
            ExitCode::from(USAGE)
        }
    }
}

fn ask(command: &Command) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answered = runtime.map(|runtime| runtime.block_on(command.run()));
    let (said, status) = match answered {
        Ok(Ok(line)) => (writeln!(std::io::stdout(), "{line}"), ExitCode::SUCCESS),
        Ok(Err(error)) => (writeln!(std::io::stderr(), "{error}"), ExitCode::FAILURE),
        Err(error) => (writeln!(std::io::stderr(), "cannot start the runtime: {error}"), ExitCode::FAILURE),
    };
    let _ = said;
    status
}

fn run(config: Config, warnings: &[String]) -> ExitCode {
    if let Err(error) = telemetry::log::init(&config.log) {
        let _ = writeln!(std::io::stderr(), "cannot start the log: {error}");
        return ExitCode::FAILURE;
    }
    log::info!("{}", config::version());
    for warning in warnings {
        log::warn!("{warning}");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            log::error!(err:% = error; "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let watcher = async move {
            received(&mut terminate, &mut interrupt).await;
            let _ = stop.send(());
            received(&mut terminate, &mut interrupt).await;
            log::warn!("second signal: ending at once");
        };
        tokio::select! {
            ended = app::run(config, async { let _ = stopped.await; }) => Ok::<_, std::io::Error>(Some(ended)),
            () = watcher => Ok(None),
        }
    });
    // Tasks that still run have had their time.
    runtime.shutdown_background();
    match result {
        Ok(Some(Ok(()))) => ExitCode::SUCCESS,
        Ok(None) => ExitCode::FAILURE,
        Ok(Some(Err(error))) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            log::error!(err:% = error; "cannot watch for signals");
            ExitCode::FAILURE
        }
    }
}

async fn received(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
