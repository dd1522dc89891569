// A plugin of nothing but the libraries that it links: see CMakeLists.txt.
