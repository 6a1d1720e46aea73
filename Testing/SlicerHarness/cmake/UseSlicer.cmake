# The macros that a scripted module's CMakeLists.txt calls, with Slicer's arguments; they copy, install, and note tests.
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.10/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.10/qt-scripted-modules)
option(BUILD_TESTING "" ON)

function(ctkMacroCompilePythonScript)
  cmake_parse_arguments(MY "NO_INSTALL_SUBDIR;GLOBAL_TARGET" "TARGET_NAME;SOURCE_DIR;DESTINATION_DIR;INSTALL_DIR"
    "SCRIPTS;RESOURCES" ${ARGN})
  if(NOT MY_SOURCE_DIR)
    set(MY_SOURCE_DIR ${CMAKE_CURRENT_SOURCE_DIR})
  endif()
  set(targets)
  foreach(file IN LISTS MY_SCRIPTS MY_RESOURCES)
    if(NOT EXISTS ${MY_SOURCE_DIR}/${file})
      message(FATAL_ERROR "${MY_TARGET_NAME}: there is no file ${file}")
    endif()
    add_custom_command(OUTPUT ${MY_DESTINATION_DIR}/${file} DEPENDS ${MY_SOURCE_DIR}/${file}
      COMMAND ${CMAKE_COMMAND} -E copy ${MY_SOURCE_DIR}/${file} ${MY_DESTINATION_DIR}/${file})
    list(APPEND targets ${MY_DESTINATION_DIR}/${file})
  endforeach()
  add_custom_target(${MY_TARGET_NAME}_files ALL DEPENDS ${targets})
  install(DIRECTORY ${MY_DESTINATION_DIR}/ DESTINATION ${MY_INSTALL_DIR} COMPONENT RuntimeLibraries)
endfunction()

function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MY "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  ctkMacroCompilePythonScript(TARGET_NAME ${MY_NAME} SCRIPTS "${MY_SCRIPTS}" RESOURCES "${MY_RESOURCES}"
    DESTINATION_DIR ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}
    INSTALL_DIR ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR} NO_INSTALL_SUBDIR)
  if(MY_WITH_GENERIC_TESTS)
    message(STATUS "generic tests of ${MY_NAME}")
  endif()
endfunction()

function(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "SCRIPT" "SLICER_ARGS" ${ARGN})
  if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${MY_SCRIPT})
    message(FATAL_ERROR "there is no test ${MY_SCRIPT}")
  endif()
  message(STATUS "unit test ${MY_SCRIPT}")
endfunction()
