#![no_main]

fuzz::target!(chunk_of_histograms, 256);
