#![no_main]

fuzz::target!(histogram_chunk, 64);
