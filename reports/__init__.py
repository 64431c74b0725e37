"""From records to answers: numbers, pictures, one page. Nothing here needs torch."""
