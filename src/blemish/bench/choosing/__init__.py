"""Which method, at which resolution or with which settings, for some pictures: by good ones that
were left out and generated defects, and by labelled defects where there are any."""
