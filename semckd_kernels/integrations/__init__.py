"""SemCKD as a part of other libraries' trainers; each module needs the library that it is named after."""
