//! What an adapter says of itself, asked again and again by a thread inside its host's namespace.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rig::exposition;
use rig::http::Client;
use rig::network;

/// How often an adapter is asked what it is and has.
const INTERVAL: Duration = Duration::from_millis(50);

/// What an adapter finds that elects by labels: each cluster it knows has a leading replica that is heard.
pub(crate) const ALL_LED: &str = "all led";

/// Or one has none, or a silent one.
pub(crate) const SOME_SILENT: &str = "some silent";

/// Or nothing was sent to it yet.
pub(crate) const NO_CLUSTER: &str = "no cluster";

/// What an adapter said of itself.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    /// When.
    pub(crate) at: Instant,
    /// Its role; none while it does not answer.
    pub(crate) role: Option<&'static str>,
    /// Samples committed.
    pub(crate) stored: f64,
    /// Samples held as standby.
    pub(crate) held_samples: f64,
    /// Memory of these.
    pub(crate) held_bytes: f64,
}

/// Ends with its owner.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    url: Mutex<String>,
    observations: Mutex<Vec<Observation>>,
    ends: AtomicBool,
}

impl Watch {
    /// Watches the adapter at `url`, as seen from `namespace`.
    pub(crate) fn start(url: String, namespace: Option<String>) -> Self {
        let shared =
            Arc::new(Shared { url: Mutex::new(url), observations: Mutex::default(), ends: AtomicBool::new(false) });
        let of_thread = Arc::clone(&shared);
        let work = move || {
            if let Some(namespace) = namespace {
                network::enter(&namespace).expect("cannot enter the host's namespace");
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("cannot start tokio").block_on(watch(&of_thread));
        };
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(work);
        Self { shared, thread: Some(thread.expect("cannot start a thread")) }
    }

    /// From now on, the one at `url`.
    pub(crate) fn follow(&self, url: String) {
        *lock(&self.shared.url) = url;
    }

    /// What was said so far.
    pub(crate) fn observations(&self) -> Vec<Observation> {
        lock(&self.shared.observations).clone()
    }

    /// What was said last.
    pub(crate) fn role(&self) -> Option<&'static str> {
        lock(&self.shared.observations).last().and_then(|last| last.role)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn watch(shared: &Shared) {
    let client = Client::new(Duration::from_millis(250));
    let roles = ["leader", "standby", "unknown", "taking_over", "resigned", "by_labels"];
    while !shared.ends.load(Ordering::Relaxed) {
        let url = format!("{}/metrics", lock(&shared.url));
        let text = client.get(&url).await.map(|answer| answer.text()).unwrap_or_default();
        let metric = |name: &str, label: &str| {
            exposition::sum(&text, &format!("prometheus_postgresql_adapter_{name}"), label).unwrap_or(0.0)
        };
        let role = roles.into_iter().find(|role| metric("role", &format!("role=\"{role}\"")) > 0.0);
        let role = role.map(|role| match role {
            "by_labels" if metric("clusters", "") < 0.5 => NO_CLUSTER,
            "by_labels" if metric("clusters_silent", "") > 0.5 => SOME_SILENT,
            "by_labels" => ALL_LED,
            role => role,
        });
        let observation = Observation {
            at: Instant::now(),
            role,
            stored: metric("samples_stored_total", ""),
            held_samples: metric("standby_held_samples", ""),
            held_bytes: metric("standby_held_bytes", ""),
        };
        lock(&shared.observations).push(observation);
        tokio::time::sleep(INTERVAL).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
