//! Orders to the election: by an external party in the form of 0.6.0, and by an operator.

use std::sync::Arc;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use percent_encoding::percent_decode_str;

use crate::election::by_labels::clusters::Clusters;
use crate::election::by_labels::orders::{ClusterOrder, ClusterRefusal};
use crate::election::commands::CommandHandle;
use crate::election::orders::{Order, Refusal};
use crate::election::role::Role;
use crate::http::answer::{Answer, method_not_allowed, text, unavailable, with_type};
use crate::http::service::Service;
use crate::model::source::Source;

/// Largest body: a digit, and some characters that a client may add.
const ORDER_BYTES_MAX: usize = 64;

/// `/admin/election/leader`: returns the leadership on GET, and takes an order on PUT. Answers and statuses are those
/// of 0.6.0.
pub(super) async fn leader(service: &Service, request: Request<Incoming>) -> Answer {
    let is_leader = matches!(service.role_now(), Role::Leader { .. });
    match *request.method() {
        Method::GET => match &service.clusters {
            Some(clusters) => match (parameter(&request, "cluster"), parameter(&request, "replica")) {
                (Some(cluster), Some(replica)) => word(clusters.leads(&Source { cluster, replica })),
                _ => say("/admin/election/leader?cluster=NAME&replica=NAME"),
            },
            None => word(is_leader),
        },
        Method::PUT => {
            let body = Limited::new(request.into_body(), ORDER_BYTES_MAX).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            let number = str::from_utf8(&body).ok().and_then(|body| body.parse::<i64>().ok());
            let order = match number {
                Some(0) => Order::Resign,
                Some(1) => Order::Lead,
                _ => return text(StatusCode::BAD_REQUEST, "1 or 0 expected in request body"),
            };
            match orders(service) {
                Ok(orders) if orders.is_external() => match orders.give(order).await {
                    // An order to resign is no failure for an adapter that does not lead.
                    Ok(()) | Err(Refusal::NotLeader) => word(true),
                    Err(refusal) => refused(&refusal),
                },
                Ok(_) => refused(&Refusal::NotAppointable),
                Err(answer) => *answer,
            }
        }
        _ => text(StatusCode::BAD_REQUEST, "Request method not supported"),
    }
}

/// `/admin/election/resign`, `hand-over`, `hold` and `release`.
pub(super) async fn order(service: &Service, request: &Request<Incoming>) -> Answer {
    let verb = request.uri().path().strip_prefix("/admin/election/").unwrap_or_default();
    let order = match (verb, request.method()) {
        ("hold", &Method::DELETE) => Order::Release,
        ("hold", &Method::POST) => Order::Hold,
        ("hold", _) => return method_not_allowed("POST, DELETE"),
        (_, method) if *method != Method::POST => return method_not_allowed("POST"),
        ("resign", _) => Order::Resign,
        ("release", _) => Order::Release,
        _ => match parameter(request, "to") {
            Some(to) => Order::HandOver { to },
            None => return say("/admin/election/hand-over?to=NAME"),
        },
    };
    if let Some(clusters) = &service.clusters {
        if service.store.get().is_none() {
            return unavailable("the database has not been reached yet");
        }
        return by_labels(clusters, request, order).await;
    }
    if parameter(request, "cluster").or_else(|| parameter(request, "replica")).is_some() {
        return text(
            StatusCode::CONFLICT,
            "adapters lead here, not replicas: without -metrics-high-availability name none",
        );
    }
    let done = match &order {
        Order::HandOver { to } => format!("handed over to {to}"),
        Order::Hold => "held out of elections until released".to_owned(),
        Order::Release => "takes part in elections".to_owned(),
        Order::Resign | Order::Lead => "resigned".to_owned(),
    };
    match orders(service) {
        Ok(orders) => match orders.give(order).await {
            Ok(()) => text(StatusCode::OK, done),
            Err(refusal) => refused(&refusal),
        },
        Err(answer) => *answer,
    }
}

/// The same for the election by labels, for a cluster and, where needed, a replica.
async fn by_labels(clusters: &Arc<Clusters>, request: &Request<Incoming>, order: Order) -> Answer {
    let path = request.uri().path();
    let Some(cluster) = parameter(request, "cluster") else {
        let to = if matches!(order, Order::HandOver { .. }) { "&to=NAME" } else { "" };
        let replica = if matches!(order, Order::Hold | Order::Release) { "&replica=NAME" } else { "" };
        return say(&format!("{path}?cluster=NAME{replica}{to}"));
    };
    let replica = parameter(request, "replica");
    let (order, done) = match (order, replica) {
        (Order::Resign, _) => (ClusterOrder::Resign, "another replica leads".to_owned()),
        (Order::HandOver { to }, _) => (ClusterOrder::HandOver { to: to.clone() }, format!("handed over to {to}")),
        (Order::Hold, Some(replica)) => {
            let done = format!("{replica} is held out of elections until released");
            (ClusterOrder::Hold { replica }, done)
        }
        (Order::Release, Some(replica)) => {
            let done = format!("{replica} takes part in elections");
            (ClusterOrder::Release { replica }, done)
        }
        _ => return say(&format!("{path}?cluster={cluster}&replica=NAME")),
    };
    match clusters.give(&cluster, order).await {
        Ok(()) => text(StatusCode::OK, done),
        Err(refusal) => {
            let status = match &refusal {
                ClusterRefusal::NoSuchCluster { .. } | ClusterRefusal::NoSuchReplica { .. } => StatusCode::NOT_FOUND,
                ClusterRefusal::HeldOut { .. } | ClusterRefusal::Overtaken { .. } => StatusCode::CONFLICT,
                ClusterRefusal::NobodyLeads { .. } | ClusterRefusal::Overdue { .. } => {
                    return unavailable(refusal.to_string());
                }
            };
            text(status, refusal.to_string())
        }
    }
}

/// Returns a 400 that names the missing parameters.
fn say(what: &str) -> Answer {
    text(StatusCode::BAD_REQUEST, format!("say of which: {what}"))
}

/// Returns the handle by which orders are given.
fn orders(service: &Service) -> Result<&CommandHandle, Box<Answer>> {
    match &service.orders {
        _ if service.clusters.is_some() => Err(Box::new(refused(&Refusal::NotAppointable))),
        None => Err(Box::new(text(StatusCode::CONFLICT, "there is no election: this adapter takes part in none"))),
        Some(_) if service.store.get().is_none() => Err(Box::new(unavailable("the database has not been reached yet"))),
        Some(orders) => Ok(orders),
    }
}

fn refused(refusal: &Refusal) -> Answer {
    match refusal {
        Refusal::NoSuchPeer { .. } => text(StatusCode::NOT_FOUND, refusal.to_string()),
        Refusal::NotLeader | Refusal::Held | Refusal::NotAppointable | Refusal::Appointed => {
            text(StatusCode::CONFLICT, refusal.to_string())
        }
        Refusal::Lost(_) | Refusal::Overdue { .. } | Refusal::Stopping => unavailable(refusal.to_string()),
    }
}

/// Returns the answer in the form of 0.6.0, without a line end.
fn word(value: bool) -> Answer {
    with_type(StatusCode::OK, "text/plain; charset=utf-8", value.to_string())
}

/// Returns a parameter of the query string, decoded.
fn parameter(request: &Request<Incoming>, name: &str) -> Option<String> {
    let mut pairs = request.uri().query()?.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.find(|(key, _)| *key == name)?.1;
    Some(percent_decode_str(value).decode_utf8_lossy().into_owned()).filter(|value| !value.is_empty())
}
