#![no_main]

fuzz::target!(matchers, 64);
