"""Time decoding off against on, interleaved, and write what was measured with its conditions."""
