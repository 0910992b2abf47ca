//! What a query selects series by.
