#![no_main]

fuzz::target!(snappy, 64);
