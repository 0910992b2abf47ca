#![no_main]

fuzz::target!(numbers, 64);
