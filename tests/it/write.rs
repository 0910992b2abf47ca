//! What a sender gives is what the database holds, or it is told why not.

use crate::setup::{Body, Database, now_ms, store};

#[tokio::test]
async fn a_sample_is_in_the_view_once_it_is_answered() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    store(&adapter, Body::new().sample("up", now, 1.5)).await;
    assert_eq!(database.one::<f64>("SELECT value FROM metrics WHERE name = 'up' AND labels = '{}'").await, 1.5);
}
