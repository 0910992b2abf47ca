//! The pair as a reader would set it up by hand: the configurations of `prometheus-configs/`, on their own ports
//! where these are free.

use rig::adapter::{self, Adapter};
use rig::configs::{ADAPTER_PORTS, Configs, NODE_PORT, PROMETHEUS_PORTS, READER_PORT};
use rig::node_exporter;
use rig::port;
use rig::postgres::{self, Postgres};
use rig::process::Process;
use rig::prometheus::{self, Prometheus};

use crate::Teller;

/// How long a leader's Prometheus may be silent, as on the adapters' command line.
pub(crate) const PROMETHEUS_TIMEOUT_SECONDS: f64 = 6.0;

/// One of the two sides.
pub(crate) struct Side {
    /// `A` or `B`.
    pub(crate) name: &'static str,
    /// Its Prometheus.
    pub(crate) prometheus: Prometheus,
    /// Its adapter; `None` while it is dead.
    pub(crate) adapter: Option<Adapter>,
    adapter_options: adapter::Options,
}

impl Side {
    /// The adapter.
    ///
    /// # Panics
    ///
    /// While it is dead.
    pub(crate) fn adapter(&self) -> &Adapter {
        self.adapter.as_ref().expect("this adapter is dead")
    }

    /// Kills the adapter (SIGKILL).
    pub(crate) async fn kill_adapter(&mut self) {
        if let Some(adapter) = self.adapter.take() {
            adapter.process().kill9().await;
        }
    }

    /// Starts the adapter again as it was.
    pub(crate) async fn start_adapter(&mut self) {
        self.adapter = Some(self.adapter_options.start().await);
    }
}

/// Everything the demo runs; all of it goes when this is dropped.
pub(crate) struct Pair {
    /// The two sides.
    pub(crate) sides: [Side; 2],
    /// The third Prometheus, which only reads.
    pub(crate) reader: Prometheus,
    /// The database.
    pub(crate) postgres: Postgres,
    _node_exporter: Process,
}

impl Pair {
    /// Starts all of it; the adapters before their Prometheis.
    pub(crate) async fn start(teller: Teller) -> Self {
        let configs = Configs::new(|named| port_for(named, teller));
        let postgres = Postgres::start(postgres::Options::default()).await;
        teller.say(&format!("PostgreSQL is up: {}", postgres.uri("postgres")));
        let node_exporter = node_exporter::start(configs.port(NODE_PORT));
        let side = async |name, replica: &str, index: usize| {
            let adapter_options = adapter::Options::new(adapter::binary_beside_this())
                .name(&format!("adapter {name}"))
                .port(configs.port(ADAPTER_PORTS[index]))
                .arg("-leader-election.pg-advisory-lock-id=1")
                .arg(format!("-leader-election.pg-advisory-lock.prometheus-timeout={PROMETHEUS_TIMEOUT_SECONDS}s"))
                .arg(format!("-pg-uri={}", postgres.uri("postgres")));
            let adapter = Some(adapter_options.start().await);
            let config = configs.text(&format!("prometheus-{replica}.yml"));
            let options = prometheus::Options::new(config)
                .name(&format!("Prometheus {name}"))
                .port(configs.port(PROMETHEUS_PORTS[index]))
                .file("rules.yml", configs.text("rules.yml"));
            let prometheus = Prometheus::start(options).await;
            teller.say(&format!(
                "{name}: Prometheus on port {}, its adapter on port {}",
                prometheus.port(),
                configs.port(ADAPTER_PORTS[index])
            ));
            Side { name, prometheus, adapter, adapter_options }
        };
        let sides = [side("A", "a", 0).await, side("B", "b", 1).await];
        let options = prometheus::Options::new(configs.text("prometheus-reader.yml"));
        let reader = Prometheus::start(options.name("Prometheus, reading").port(configs.port(READER_PORT))).await;
        teller.say(&format!("a Prometheus on port {} scrapes nothing: it reads what is stored", reader.port()));
        Self { sides, reader, postgres, _node_exporter: node_exporter }
    }
}

/// The port itself where it is free, and another one where it is not.
fn port_for(named: u16, teller: Teller) -> u16 {
    if port::is_free(named) {
        return named;
    }
    let other = port::free();
    teller.say(&format!("port {named} is taken: {other} instead"));
    other
}
