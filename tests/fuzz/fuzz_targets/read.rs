#![no_main]

fuzz::target!(read, 64);
