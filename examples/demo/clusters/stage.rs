//! What runs: two adapters that elect by labels, a proxy before them, and two clusters of two Prometheis that know only
//! the proxy.

use rig::adapter::{self, Adapter};
use rig::configs::{ADAPTER_PORTS, Configs};
use rig::node_exporter;
use rig::port;
use rig::postgres::{self, Postgres};
use rig::process::Process;
use rig::prometheus::{self, Prometheus};
use serde_json::Value;

use super::proxy::Proxy;
use crate::judge::{Death, Subject};
use crate::{PATIENCE, Teller};

/// How long a leading replica may be silent, as on the adapters' command line.
pub(crate) const TIMEOUT_SECONDS: f64 = 6.0;

/// The labels `__replica__` of each cluster.
pub(crate) const REPLICAS: [&str; 2] = ["a", "b"];

/// Two Prometheis that scrape the same.
pub(crate) struct Cluster {
    /// Its label `cluster`.
    pub(crate) name: &'static str,
    /// In the order of [`REPLICAS`].
    pub(crate) replicas: [Prometheus; 2],
}

impl Cluster {
    /// Its samples, for the judge, and what was killed.
    pub(crate) fn subject<'a>(&'a self, deaths: &'a [Death]) -> Subject<'a> {
        Subject { cluster: self.name, sides: self.replicas.each_ref(), deaths }
    }
}

/// Which replica leads a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lead {
    /// Its place in [`REPLICAS`].
    pub(crate) replica: usize,
    /// Each change of leader begins another.
    pub(crate) term: i64,
}

impl Lead {
    /// The label `__replica__` of the one that leads.
    pub(crate) fn name(self) -> &'static str {
        REPLICAS[self.replica]
    }
}

/// Everything the demo runs; all of it goes when this is dropped.
pub(crate) struct Stage {
    /// The two clusters.
    pub(crate) clusters: [Cluster; 2],
    /// The adapters; `None` while one is dead.
    pub(crate) adapters: [Option<Adapter>; 2],
    adapter_options: [adapter::Options; 2],
    /// What all Prometheis send to and read from.
    pub(crate) proxy: Proxy,
    /// A Prometheus that only reads.
    pub(crate) reader: Prometheus,
    /// The database.
    pub(crate) postgres: Postgres,
    _node_exporter: Process,
}

impl Stage {
    /// Starts all of it; what is sent to before what sends.
    pub(crate) async fn start(teller: Teller) -> Self {
        let postgres = Postgres::start(postgres::Options::default()).await;
        teller.say(&format!("PostgreSQL is up: {}", postgres.uri("postgres")));
        let node_port = port::free();
        let node_exporter = node_exporter::start(node_port);
        let adapter_ports = [port::free(), port::free()];
        let adapter_options = [0, 1].map(|index| {
            adapter::Options::new(adapter::binary_beside_this())
                .name(&format!("adapter {}", index + 1))
                .port(adapter_ports[index])
                .arg("-metrics-high-availability")
                .arg(format!("-metrics-high-availability-timeout={TIMEOUT_SECONDS}s"))
                .arg(format!("-pg-uri={}", postgres.uri("postgres")))
        });
        let adapters = [Some(adapter_options[0].start().await), Some(adapter_options[1].start().await)];
        let proxy = Proxy::start(adapter_ports.to_vec()).await;
        let [one, other] = adapter_ports;
        teller.say(&format!("adapters 1 and 2 on ports {one} and {other}, the proxy on port {}", proxy.port()));
        let cluster = async |name: &'static str| {
            let ports = [port::free(), port::free()];
            let scraped = [("prometheus", &ports[..]), ("adapter", &adapter_ports), ("node", &[node_port])];
            let replica = async |index: usize| {
                let config = config(name, REPLICAS[index], &scraped, proxy.port());
                let options = prometheus::Options::new(config).port(ports[index]);
                Prometheus::start(options.name(&format!("Prometheus {name}/{}", REPLICAS[index]))).await
            };
            let replicas = [replica(0).await, replica(1).await];
            teller.say(&format!("cluster {name}: Prometheus a on port {}, b on port {}", ports[0], ports[1]));
            Cluster { name, replicas }
        };
        let clusters = [cluster("eu").await, cluster("us").await];
        let configs = Configs::new(|named| if ADAPTER_PORTS.contains(&named) { proxy.port() } else { port::free() });
        let options = prometheus::Options::new(configs.text("prometheus-reader.yml")).name("Prometheus, reading");
        let reader = Prometheus::start(options).await;
        teller.say(&format!("a Prometheus on port {} scrapes nothing: it reads what is stored", reader.port()));
        Self { clusters, adapters, adapter_options, proxy, reader, postgres, _node_exporter: node_exporter }
    }

    /// Kills an adapter (SIGKILL).
    pub(crate) async fn kill_adapter(&mut self, index: usize) {
        if let Some(adapter) = self.adapters[index].take() {
            adapter.process().kill9().await;
        }
    }

    /// Starts it again as it was.
    pub(crate) async fn start_adapter(&mut self, index: usize) {
        self.adapters[index] = Some(self.adapter_options[index].start().await);
    }

    /// Who leads a cluster, as each living adapter knows it.
    pub(crate) async fn leads(&self, cluster: usize) -> Vec<Option<Lead>> {
        let mut leads = Vec::new();
        for adapter in self.adapters.iter().flatten() {
            leads.push(lead(adapter, self.clusters[cluster].name).await);
        }
        leads
    }

    /// Waits until all living adapters know the same leader of a cluster, which is not `but`, and returns it.
    pub(crate) async fn settled(&self, cluster: usize, but: Option<Lead>) -> Lead {
        let living = self.adapters.iter().flatten().next().expect("one adapter lives");
        let what = format!("all adapters know who leads {}", self.clusters[cluster].name);
        let settled = async || {
            let leads = self.leads(cluster).await;
            leads
                .first()
                .copied()
                .flatten()
                .filter(|lead| Some(*lead) != but && leads.iter().all(|l| *l == Some(*lead)))
        };
        living.process().wait_until(&what, PATIENCE, settled).await
    }
}

/// Who leads a cluster, as an adapter knows it.
async fn lead(adapter: &Adapter, cluster: &str) -> Option<Lead> {
    let status: Value = serde_json::from_str(&adapter.status().await?).ok()?;
    let known = status["clusters"].as_array()?.iter().find(|known| known["cluster"] == cluster)?;
    let replica = REPLICAS.iter().position(|name| known["leader"]["replica"] == *name)?;
    Some(Lead { replica, term: known["leader"]["term"].as_i64()? })
}

/// A prometheus.yml as in `prometheus-configs/`, but for the proxy's port.
fn config(cluster: &str, replica: &str, scraped: &[(&str, &[u16])], proxy: u16) -> String {
    let target = |port: &u16| format!("'localhost:{port}'");
    let job = |(job, ports): &(&str, &[u16])| {
        let targets = ports.iter().map(target).collect::<Vec<_>>().join(", ");
        format!("  - {{job_name: {job}, static_configs: [{{targets: [{targets}]}}]}}\n")
    };
    format!(
        "global:\n  scrape_interval: 1s\n  external_labels: {{cluster: {cluster}, __replica__: {replica}}}\n\
         scrape_configs:\n{}\
         remote_write:\n  - url: http://localhost:{proxy}/write\n    queue_config: {{batch_send_deadline: 1s}}\n",
        scraped.iter().map(job).collect::<String>()
    )
}
