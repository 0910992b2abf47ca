//! The pair as a reader would set it up by hand: the configurations of `prometheus-configs/`, on their own ports
//! where these are free.

use std::path::Path;

use rig::adapter::{self, Adapter};
use rig::port;
use rig::postgres::{self, Postgres};
use rig::process::Process;
use rig::prometheus::{self, Prometheus};

use crate::Teller;
use crate::target::node_exporter;

/// What `prometheus-configs/` says.
const PROMETHEUS_PORTS: [u16; 2] = [9090, 9091];
const READER_PORT: u16 = 9092;
const NODE_PORT: u16 = 9100;
const ADAPTER_PORTS: [u16; 2] = [9201, 9202];

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
        let ports = Ports::choose(teller);
        let postgres = Postgres::start(postgres::Options::default()).await;
        teller.say(&format!("PostgreSQL is up: {}", postgres.uri("postgres")));
        let node_exporter = node_exporter(ports.of(NODE_PORT));
        let side = async |name, replica: &str, index: usize| {
            let adapter_options = adapter::Options::new(adapter::binary_beside_this())
                .name(&format!("adapter {name}"))
                .port(ports.of(ADAPTER_PORTS[index]))
                .arg("-leader-election.pg-advisory-lock-id=1")
                .arg(format!("-leader-election.pg-advisory-lock.prometheus-timeout={PROMETHEUS_TIMEOUT_SECONDS}s"))
                .arg(format!("-pg-uri={}", postgres.uri("postgres")));
            let adapter = Some(adapter_options.start().await);
            let config = ports.config(&format!("prometheus-{replica}.yml"));
            let options = prometheus::Options::new(config)
                .name(&format!("Prometheus {name}"))
                .port(ports.of(PROMETHEUS_PORTS[index]))
                .file("rules.yml", ports.config("rules.yml"));
            let prometheus = Prometheus::start(options).await;
            teller.say(&format!(
                "{name}: Prometheus on port {}, its adapter on port {}",
                prometheus.port(),
                ports.of(ADAPTER_PORTS[index])
            ));
            Side { name, prometheus, adapter, adapter_options }
        };
        let sides = [side("A", "a", 0).await, side("B", "b", 1).await];
        let options = prometheus::Options::new(ports.config("prometheus-reader.yml"));
        let reader = Prometheus::start(options.name("Prometheus, reading").port(ports.of(READER_PORT))).await;
        Self { sides, reader, postgres, _node_exporter: node_exporter }
    }
}

/// The port that is used for each port that the configurations name.
struct Ports(Vec<(u16, u16)>);

impl Ports {
    fn choose(teller: Teller) -> Self {
        let named = [PROMETHEUS_PORTS.as_slice(), &[READER_PORT, NODE_PORT], &ADAPTER_PORTS].concat();
        let choose = |named| {
            if port::is_free(named) {
                return (named, named);
            }
            let other = port::free();
            teller.say(&format!("port {named} is taken: {other} instead"));
            (named, other)
        };
        Self(named.into_iter().map(choose).collect())
    }

    fn of(&self, named: u16) -> u16 {
        self.0.iter().find(|(port, _)| *port == named).expect("every port of the configurations is chosen").1
    }

    /// The text of a file in `prometheus-configs/` with the ports that are used.
    fn config(&self, name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("prometheus-configs").join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        let replace = |text: String, (named, used): &(u16, u16)| {
            text.replace(&format!("localhost:{named}"), &format!("localhost:{used}"))
        };
        self.0.iter().fold(text, replace)
    }
}
