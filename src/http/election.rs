//! Orders to the election: by an outside party as 0.6.0 took them, and by hand.

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use percent_encoding::percent_decode_str;

use crate::election::desk::Orders;
use crate::election::orders::{Order, Refusal};
use crate::election::role::Role;
use crate::http::{Answer, Service, method_not_allowed, text, unavailable, with_type};

/// A digit, and whatever a client may put around it.
const BODY_BYTES_MAX: usize = 64;

/// `/admin/election/leader`: who asks is told, who orders is obeyed; answers and statuses are those of 0.6.0.
pub(super) async fn leader(service: &Service, request: Request<Incoming>) -> Answer {
    let is_leader = matches!(service.role_now(), Role::Leader { .. });
    match *request.method() {
        Method::GET if service.clusters.is_some() => not_by_labels(),
        Method::GET => word(is_leader),
        Method::PUT => {
            let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            let number = str::from_utf8(&body).ok().and_then(|body| body.parse::<i64>().ok());
            let order = match number {
                Some(0) => Order::Resign,
                Some(1) => Order::Lead,
                _ => return text(StatusCode::BAD_REQUEST, "1 or 0 expected in request body"),
            };
            match orders(service) {
                Ok(orders) if orders.by_rest() => match orders.give(order).await {
                    // To one that does not lead, resigning was no failure.
                    Ok(()) | Err(Refusal::NotLeader) => word(true),
                    Err(refusal) => refused(&refusal),
                },
                Ok(_) => refused(&Refusal::NotTold),
                Err(answer) => *answer,
            }
        }
        _ => text(StatusCode::BAD_REQUEST, "Request method not supported"),
    }
}

/// `/admin/election/resign` and its kin.
pub(super) async fn order(service: &Service, request: &Request<Incoming>) -> Answer {
    let verb = request.uri().path().trim_start_matches("/admin/election/");
    let order = match (verb, request.method()) {
        ("hold", &Method::DELETE) => Order::Release,
        ("hold", &Method::POST) => Order::Hold,
        ("hold", _) => return method_not_allowed("POST, DELETE"),
        (_, method) if *method != Method::POST => return method_not_allowed("POST"),
        ("resign", _) => Order::Resign,
        ("release", _) => Order::Release,
        _ => match parameter(request, "to") {
            Some(to) if !to.is_empty() => Order::HandOver { to },
            _ => return text(StatusCode::BAD_REQUEST, "say to whom: /admin/election/hand-over?to=NAME"),
        },
    };
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

/// Where orders are given.
fn orders(service: &Service) -> Result<&Orders, Box<Answer>> {
    match &service.orders {
        _ if service.clusters.is_some() => Err(Box::new(not_by_labels())),
        None => Err(Box::new(text(StatusCode::CONFLICT, "there is no election: this adapter takes part in none"))),
        Some(_) if service.store.get().is_none() => Err(Box::new(unavailable("the database has not been reached yet"))),
        Some(orders) => Ok(orders),
    }
}

/// Where leaders are found by labels, orders are to name a cluster and a replica.
fn not_by_labels() -> Answer {
    text(
        StatusCode::NOT_IMPLEMENTED,
        "not by labels yet: with -metrics-high-availability leaders cannot be told by hand",
    )
}

fn refused(refusal: &Refusal) -> Answer {
    match refusal {
        Refusal::NoSuchPeer { .. } => text(StatusCode::NOT_FOUND, refusal.to_string()),
        Refusal::NotLeader | Refusal::Held | Refusal::NotTold | Refusal::Told => {
            text(StatusCode::CONFLICT, refusal.to_string())
        }
        Refusal::Lost(_) | Refusal::Overdue { .. } | Refusal::Stopping => unavailable(refusal.to_string()),
    }
}

/// As 0.6.0 wrote it, without the end of a line.
fn word(value: bool) -> Answer {
    with_type(StatusCode::OK, "text/plain; charset=utf-8", value.to_string())
}

/// A parameter of the query, decoded.
fn parameter(request: &Request<Incoming>, name: &str) -> Option<String> {
    let mut pairs = request.uri().query()?.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.find(|(key, _)| *key == name)?.1;
    Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
}
